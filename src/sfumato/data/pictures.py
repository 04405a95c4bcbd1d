"""Grids of images as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = 8
"""of the pictures in a run's samples/"""


def grid(images: Float[Tensor, "B 3 H W"], columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Images in [0, 1] laid out row by row on white, each pixel enlarged `zoom` times."""
    batch, _, height, width = images.shape
    rows = -(-batch // columns)
    sheet = Image.new("RGB", (columns * (width * zoom + gap) + gap, rows * (height * zoom + gap) + gap), "white")
    for n, image in enumerate(to_pil(images)):
        tile = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        row, column = divmod(n, columns)
        sheet.paste(tile, (gap + column * (width * zoom + gap), gap + row * (height * zoom + gap)))
    return sheet


def tiles(sheet: Image.Image, columns: int, gap: int = 2) -> list[Image.Image]:
    """The square images of a `grid`, with what is left white in its last row."""
    side = (sheet.width - gap) // columns
    corners = [(x, y) for y in range(gap, sheet.height, side) for x in range(gap, sheet.width, side)]
    return [sheet.crop((x, y, x + side - gap, y + side - gap)) for x, y in corners]


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit RGB pictures."""
    pixels = (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def side_by_side(pictures: Sequence[tuple[str, Image.Image]], gap: int = 16) -> Image.Image:
    """Pictures with a title above each."""
    font = ImageFont.load_default(size=18)
    title = 28
    width = sum(p.width for _, p in pictures) + gap * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, max(p.height for _, p in pictures) + title + gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for text, picture in pictures:
        draw.text((left + 2, 4), text, fill="black", font=font)
        sheet.paste(picture, (left, title))
        left += picture.width + gap
    return sheet


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
