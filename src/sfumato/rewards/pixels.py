"""Rewards that are computed from pixels only."""

import io

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.request import Words

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""


def brightness(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return the mean luma in [0, 1] (Gallici & Sáez de Ocáriz Borde, section 4.1)."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1).mean((1, 2))


def darkness(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return 1 - brightness."""
    return 1 - brightness(images, words)


def bright(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return 1 if the brightness is at least 0.8, otherwise 0."""
    return (brightness(images, words) >= 0.8).float()


def dark(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return 1 if the brightness is below 0.2, otherwise 0."""
    return (brightness(images, words) < 0.2).float()


def colorfulness(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return the colorfulness of Hasler & Süsstrunk (2003), section 7: the spread plus 0.3 times the mean chroma of the
    opponent axes rg and yb.

    The original is defined for 8-bit channels; this is its value divided by 255, about 0 for gray images and 0.4 for
    extremely colorful ones.
    """
    red, green, blue = images.flatten(2).unbind(1)
    axes = torch.stack([red - green, (red + green) / 2 - blue], dim=1)  # (B, 2, H·W)
    spread = axes.var(2, correction=0).sum(1).sqrt()
    chroma = axes.mean(2).square().sum(1).sqrt()
    return spread + 0.3 * chroma


def saturation(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return the mean HSV saturation in [0, 1]: (max - min) / max of a pixel's channels, 0 for black."""
    highest, lowest = images.amax(1), images.amin(1)
    return torch.where(highest > 0, (highest - lowest) / highest.clamp_min(1e-12), 0.0).mean((1, 2))


def jpeg_size(images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
    """Return the size as a JPEG of quality 95 in kilobytes of 1000 bytes: incompressibility (Black et al. 2023,
    section 5.1).

    Give the reward a negative weight for images that compress well.
    """
    return images.new_tensor([_jpeg_bytes(picture) / 1000 for picture in to_pictures(images)])


def _jpeg_bytes(picture: Image.Image) -> int:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=95)
    return buffer.tell()
