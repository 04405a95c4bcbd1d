"""Grids of images as PNG files."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.data.preprocessing import to_bytes

COLUMNS = 8
"""Number of columns in the pictures of a run's samples/ folder."""


LABEL = 18
"""Height in pixels of the line of labels below a row of a grid."""


def grid(
    images: Float[Tensor, "B 3 H W"], columns: int, zoom: int = 1, gap: int = 2, labels: Sequence[str] = ()
) -> Image.Image:
    """Arrange images in [0, 1] row by row on a white background, with each pixel enlarged `zoom` times.

    If there are labels, one per image, each stands below the first of the images in a row that have it.
    """
    batch, _, height, width = images.shape
    rows, line = -(-batch // columns), LABEL if labels else 0
    across, down = width * zoom + gap, height * zoom + gap + line
    sheet = Image.new("RGB", (columns * across + gap, rows * down + gap), "white")
    for n, image in enumerate(to_pictures(images)):
        tile = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        row, column = divmod(n, columns)
        sheet.paste(tile, (gap + column * across, gap + row * down))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LABEL - 5)
    for row in range(rows) if labels else ():
        first = row * columns
        for label, run in groupby(range(first, min(first + columns, batch)), key=labels.__getitem__):
            same = list(run)
            place = (gap + (same[0] - first) * across, gap + row * down + height * zoom)
            draw.text(place, _fitted(label, font, len(same) * across - 2 * gap), fill="black", font=font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut the end off a text that is wider than this number of pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def tiles(sheet: Image.Image, columns: int, gap: int = 2) -> list[Image.Image]:
    """Cut a `grid` of square images into its tiles, including white tiles at the end of the last row."""
    side = (sheet.width - gap) // columns
    corners = [(x, y) for y in range(gap, sheet.height, side) for x in range(gap, sheet.width, side)]
    return [sheet.crop((x, y, x + side - gap, y + side - gap)) for x, y in corners]


def to_pictures(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """Convert images in [0, 1] to 8-bit RGB pictures."""
    pixels = to_bytes(images).cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(image) for image in pixels]


def side_by_side(pictures: Sequence[tuple[str, Image.Image]], gap: int = 16) -> Image.Image:
    """Place pictures next to each other, with a title above each."""
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


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format that the name of the file ends in; the folder is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95)  # of JPEG and WebP
