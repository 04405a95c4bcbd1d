"""Images for pre-training: any folder of pictures, or the emoji of `emoji-datasource-google`.

A source is a finite list of (image, class) pairs with sampling weights. A tokenizer is trained on random draws from it,
and its tokens are cached once for the generator.
"""

import re
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from sfumato.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@runtime_checkable
class ImageSource(Protocol):
    """Labeled images for training."""

    class_names: tuple[str, ...]
    weights: Float[Tensor, " N"]
    """relative frequency of each of the N items"""
    validation: Bool[Tensor, " N"]
    """True for items whose captions are excluded from training, for evaluation"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        """Return images in [0, 1] and class labels of the items with these numbers."""
        ...

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        """Return a caption for each of the items with these numbers, a random one if an item has several."""
        ...


class FolderImages:
    """A folder of images with one subfolder per class (or none for a single class), resized and cropped to squares.

    The caption of `cat/1.png` is the text in `cat/1.txt`, or the class name if there is no such file.
    """

    def __init__(self, folder: str | Path, size: int):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"data: {folder} is not a folder; give a folder with one subfolder of images per class")
        files = find_images(folder)
        if not files:
            raise UserError(f"data: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) below {folder}")
        classes = [p.relative_to(folder).parts[0] if p.parent != folder else "image" for p in files]
        self.class_names = tuple(sorted(set(classes)))
        self._labels = torch.tensor([self.class_names.index(c) for c in classes])
        self._images = torch.stack([_read_square(p, size) for p in files])  # uint8
        texts = [p.with_suffix(".txt") for p in files]
        self._captions = [_read_caption(t) if t.is_file() else c for t, c in zip(texts, classes, strict=True)]
        self.weights = torch.ones(len(files))
        self.validation = torch.zeros(len(files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        return self._images[index].float() / 255, self._labels[index]

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        return [self._captions[i] for i in index.tolist()]


def find_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted by path, with numbers by value (2.png before 10.png).

    Hidden files and files in hidden folders are left out.
    """
    images = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    shown = (p for p in images if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(shown, key=lambda path: [numbers_by_value(part) for part in path.parts])


def numbers_by_value(name: str) -> list[str | int]:
    """Return a sort key for names that treats runs of digits as numbers."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a copy as RGB: rotated upright, 16 bits reduced to 8, transparent parts on white.

    Raises:
        ValueError: the pixels are floating-point numbers.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if picture.mode == "RGB":
        return picture.copy()
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def read_rgb(path: Path, field: str) -> Image.Image:
    """Read an image file as RGB (see `to_rgb`).

    Raises:
        UserError: the file is not an image, or has floating-point pixels; the message begins with `field`.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise UserError(f"{field}: {path} cannot be read as an image ({error}); remove or replace it") from error


def _read_caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"data: {path} is not UTF-8; save the file as UTF-8") from error


def _read_square(path: Path, size: int) -> Tensor:
    """Read an image as uint8 (3, size, size): resize the shorter side to `size`, then crop the center."""
    image = read_rgb(path, "data")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
