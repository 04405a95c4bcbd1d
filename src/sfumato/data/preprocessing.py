"""What reward models want images to be: resized, cropped and normalised, on tensors and in batches.

The processors that these follow work on 8-bit images and resize with PIL. So do these, up to the rounding between
PIL's two passes: values are rounded to 8 bits before and after resizing.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""of OpenAI's CLIP, and of all that follow it: mean of red, green and blue in [0, 1]"""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""the standard deviation"""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""of torchvision's ImageNet models: mean of red, green and blue in [0, 1]"""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""the standard deviation"""


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images in [0, 1] as 8-bit values, rounded."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_pictures(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """Images in [0, 1] as PIL images."""
    return [Image.fromarray(array) for array in to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()]


def resize(
    images: Float[Tensor, "B 3 H W"], height: int, width: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Float[Tensor, "B 3 h w"]:
    """Images in [0, 1], resized with antialiasing as PIL does; the results are multiples of 1/255."""
    if images.shape[-2:] == (height, width):
        return to_bytes(images).float() / 255
    resized = F.interpolate(to_bytes(images).float(), (height, width), mode=mode, antialias=True, align_corners=False)
    return resized.round().clamp(0, 255) / 255


def resize_shortest(
    images: Float[Tensor, "B 3 H W"], side: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Float[Tensor, "B 3 h w"]:
    """Resized so that the shorter side is `side` pixels; the longer one is rounded down."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, side * height // short, side * width // short, mode)


def centre_crop(images: Float[Tensor, "B 3 H W"], height: int, width: int) -> Float[Tensor, "B 3 h w"]:
    """The middle of images that are at least this large; an odd pixel is left over at the bottom and right."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def crop_square(images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 s s"]:
    """The middle of images whose shorter side is resized to `side` pixels: what CLIP sees."""
    return centre_crop(resize_shortest(images, side), side, side)


def pad_square(images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 s s"]:
    """Whole images whose longer side is resized to `side` pixels, between black bars: what HPSv2 sees.

    Its processor resizes numbers rather than 8-bit values, and so rounds nothing after resizing.
    """
    height, width = (round(length * side / max(images.shape[-2:])) for length in images.shape[-2:])
    images = to_bytes(images).float() / 255
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def normalise(
    images: Float[Tensor, "B 3 H W"], mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Float[Tensor, "B 3 H W"]:
    """(images - mean) / std, by channel."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]
