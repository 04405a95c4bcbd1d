"""Image preprocessing for reward models: resize, crop and normalize batches of tensors.

The original processors work on 8-bit images and resize with PIL. These functions reproduce them within one of 255
levels.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in [0, 1] for OpenAI's CLIP and the models derived from it."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue for the same models."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue in [0, 1] for torchvision's ImageNet models."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue for the same models."""


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Convert images in [0, 1] to 8-bit values, with rounding."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def resize(
    images: Float[Tensor, "B 3 H W"], height: int, width: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Float[Tensor, "B 3 h w"]:
    """Resize images in [0, 1] with antialiasing, as PIL does; the results are multiples of 1/255."""
    pixels = to_bytes(images).float()
    # PIL resizes the width, rounds and clips, then the height. Bilinear weights do not overshoot: one pass is as close.
    sizes = [(images.shape[-2], width), (height, width)] if mode == "bicubic" else [(height, width)]
    for size in sizes:
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode=mode, antialias=True, align_corners=False).round().clamp(0, 255)
    return pixels / 255


def resize_shortest(
    images: Float[Tensor, "B 3 H W"], side: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Float[Tensor, "B 3 h w"]:
    """Resize images so that the shorter side is `side` pixels; the longer side is rounded down."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, side * height // short, side * width // short, mode)


def center_crop(
    images: Float[Tensor, "B 3 H W"], height: int, width: int, rounding: Literal["even", "down"] = "even"
) -> Float[Tensor, "B 3 h w"]:
    """Crop the center of images that are at least this large.

    Half of an odd excess is rounded to an even number as torchvision does, or down as transformers' processors do.
    """
    halves = ((images.shape[-2] - height) / 2, (images.shape[-1] - width) / 2)
    top, left = (round(half) if rounding == "even" else math.floor(half) for half in halves)
    return images[..., top : top + height, left : left + width]


def crop_square(
    images: Float[Tensor, "B 3 H W"], side: int, rounding: Literal["even", "down"] = "even"
) -> Float[Tensor, "B 3 s s"]:
    """Resize the shorter side to `side` pixels and crop the center, as for CLIP."""
    return center_crop(resize_shortest(images, side), side, side, rounding)


def pad_square(images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 s s"]:
    """Resize the longer side to `side` pixels and pad with black bars to a square, as for HPSv2.

    HPSv2's processor resizes floating-point values instead of 8-bit values, so nothing is rounded after resizing.
    """
    height, width = (round(length * side / max(images.shape[-2:])) for length in images.shape[-2:])
    images = to_bytes(images).float() / 255
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def normalize(
    images: Float[Tensor, "B 3 H W"], mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Float[Tensor, "B 3 H W"]:
    """Return (images - mean) / std for each channel."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]
