"""Training images of the reward classifier, with other augmentations than the evaluation classifier's
(`augmentations.py`)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.emoji.augmentations import uniform
from sfumato.emoji.source import EmojiImages


def rival_scenes(source: ImageSource, count: int, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " B"]]:
    """Draw images in [0, 1] and labels; emoji are placed on mottled backgrounds, other images keep their own.

    Each image is randomly deformed, relit, coarsened and partly covered.
    """
    if isinstance(source, EmojiImages):
        labels = torch.randint(len(source.sprites), (count,), generator=rng)
        sprites = deform(source.sprites[labels], rng)
        images = sprites[:, :3] + (1 - sprites[:, 3:]) * mottled(count, sprites.shape[-1], rng)
    else:
        index = torch.multinomial(source.weights, count, replacement=True, generator=rng)
        images, labels = source[index]
        images = deform(images, rng)
    return cover(coarsen(other_light(images.clamp(0, 1), rng), rng), rng).clamp(0, 1), labels


def mottled(count: int, side: int, rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Return one random color per image, from gray to saturated, with smooth blotches of random strength up to 0.2."""
    hue = torch.lerp(
        uniform(rng, 0, 1, count, 1, 1, 1), uniform(rng, 0, 1, count, 3, 1, 1), uniform(rng, 0, 1, count, 1, 1, 1)
    )
    blotches = F.interpolate(uniform(rng, -1, 1, count, 3, 4, 4), size=(side, side), mode="bicubic")
    return (hue + blotches * uniform(rng, 0, 0.2, count, 1, 1, 1)).clamp(0, 1)


def deform(images: Float[Tensor, "B C H W"], rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Shear, stretch and shift each image by random amounts."""
    affine = torch.eye(2).expand(len(images), 2, 2) + uniform(rng, -0.2, 0.2, len(images), 2, 2)
    affine = torch.cat([affine, uniform(rng, -0.15, 0.15, len(images), 2, 1)], dim=2)
    places = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)


def other_light(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Change the gamma of each image, dim it, and remove up to half of its color."""
    gamma, light = uniform(rng, -0.5, 0.5, len(images), 1, 1, 1).exp(), uniform(rng, 0.3, 1, len(images), 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    return torch.lerp(images, grey, uniform(rng, 0, 0.5, len(images), 1, 1, 1)).clamp_min(1e-6) ** gamma * light


def coarsen(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Reduce details finer than two pixels, as tokenizers do."""
    coarse = F.interpolate(F.avg_pool2d(images, 2), size=images.shape[2:], mode="bilinear")
    return torch.lerp(images, coarse, uniform(rng, 0, 1, len(images), 1, 1, 1))


def cover(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Cover half of the images, on average, with a plain rectangle of up to 0.4 of the side in width and height."""
    count, side = len(images), images.shape[-1]
    size = uniform(rng, 0, 0.4, count, 2) * (torch.rand(count, 1, generator=rng) < 0.5)
    first = uniform(rng, 0, 1, count, 2) * (1 - size)
    place = (torch.arange(side) + 0.5) / side
    inside = (place >= first[..., None]) & (place < (first + size)[..., None])  # (B, 2, side)
    rectangle = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
    return torch.where(rectangle, uniform(rng, 0, 1, count, 3, 1, 1), images)
