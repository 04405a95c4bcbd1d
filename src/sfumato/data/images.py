"""Images for pre-training: any folder of pictures, or the emoji of `emoji-datasource-google`.

A source is a finite list of (image, class) pairs with sampling weights. A tokenizer is trained on random draws from it,
and its tokens are cached once for the generator.
"""

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from sfumato.errors import UserError
from sfumato.notes import note

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Extensions of image files, in lower case. What is in a file may be any format that Pillow reads."""


@runtime_checkable
class ImageSource(Protocol):
    """Labeled images for training."""

    class_names: tuple[str, ...]
    """name of each class, in the order of the labels"""
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

    The caption of `cat/1.png` is the text in `cat/1.txt`, or the class name if there is no such file. Of an animation,
    the first frame is used. Files that cannot be read are left out; a note says which, and why.

    Raises:
        UserError: the folder does not exist or has no readable image, or a caption is not UTF-8.
    """

    def __init__(self, folder: str | Path, size: int):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"data: {folder} is not a folder; give a folder with one subfolder of images per class")
        images, unread = {}, {}
        for path in find_images(folder):
            try:
                images[path] = _read_square(path, size)  # uint8
            except UserError as error:
                unread[path] = str(error.__cause__)
        omitted = left_out(folder, list(images), unread)
        if not images:
            known = f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) below {folder}"
            raise UserError(f"data: {known}{f'; {omitted} left out' if omitted else ''}; give another folder")
        if omitted:
            note(f"data: {len(images)} images in {folder}; left out: {omitted}")
        classes = [class_of(path, folder) for path in images]
        self.class_names = tuple(sorted(set(classes)))
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._labels = torch.tensor([numbers[c] for c in classes])
        self._images = torch.stack(list(images.values()))
        texts = [p.with_suffix(".txt") for p in images]
        self._captions = [_read_caption(t) if t.is_file() else c for t, c in zip(texts, classes, strict=True)]
        self.weights = torch.ones(len(images))
        self.validation = torch.zeros(len(images), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        return self._images[index].float() / 255, self._labels[index]

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        return [self._captions[i] for i in index.tolist()]


def find_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted by path, with numbers by value (2.png before 10.png).

    Links are followed, except to a folder that contains the link. Hidden files and files in hidden folders are left
    out.
    """
    images = (p for p in _below(folder) if p.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(p))
    return sorted(images, key=lambda path: [numbers_by_value(part) for part in path.parts])


def _below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield files and folders below a folder, but nothing hidden; `above` identifies the folders that contain it."""
    try:
        status, entries = folder.stat(), sorted(folder.iterdir())
    except OSError:  # missing, or without permission
        return
    own = (status.st_dev, status.st_ino)
    for entry in entries if own not in above else ():
        if not entry.name.startswith("."):
            yield entry
            if os.path.isdir(entry):
                yield from _below(entry, above | {own})


def left_out(folder: Path, images: Sequence[Path], unread: Mapping[Path, str]) -> str:
    """Return what of a folder was left out and why, in one line; empty if nothing was.

    Args:
        folder: the folder.
        images: image files in it that are used.
        unread: reasons why the other image files cannot be read, by path.
    """
    others = [p for p in _below(folder) if not os.path.isdir(p) and p not in unread and p.suffix.lower() != ".txt"]
    broken = [str(p.relative_to(folder)) for p in others if not os.path.isfile(p)]
    known = set(images)
    foreign = Counter(p.suffix.lower() or p.name for p in others if p not in known and os.path.isfile(p))
    full = {p.relative_to(folder).parts[0] for p in images}
    empty = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "." and p.name not in full]
    kinds = {
        "files that cannot be read as images": [f"{p.relative_to(folder)}: {cause}" for p, cause in unread.items()],
        "class folders without images": empty,
        "broken links": broken,
        "files of other types": [f"{count} {suffix}" for suffix, count in foreign.most_common()],
    }
    counts = [sum(foreign.values()) if kind == "files of other types" else len(kinds[kind]) for kind in kinds]
    parts = [
        f"{count} {kind} ({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''})"
        for count, (kind, examples) in zip(counts, kinds.items(), strict=True)
        if count
    ]
    return ", ".join(parts)


def class_of(path: Path, folder: Path) -> str:
    """Return the name of the class folder, whose name is UTF-8 whatever the locale; other bytes become escapes."""
    if path.parent == folder:
        return "image"
    name = os.fsencode(path.relative_to(folder).parts[0]).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", name)  # as people type it; macOS takes letters and accents apart


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
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    if picture.mode == "CMYK":
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def read_rgb(path: Path, field: str) -> Image.Image:
    """Read an image file as RGB (see `to_rgb`).

    Raises:
        UserError: the file is not an image, or has floating-point pixels; the message begins with `field`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and of odd metadata
            return _open_rgb(path)
    except Exception as error:  # Pillow raises anything on damaged files; the cause is kept
        raise UserError(f"{field}: {path} cannot be read as an image ({error}); remove or replace it") from error


def _open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return to_rgb(file)


def probe(files: Sequence[Path]) -> dict[Path, tuple[int, int] | str]:
    """Decode image files. Return the width and height of each in pixels, or the reason why it cannot be read."""

    def size_of(path: Path) -> tuple[int, int] | str:
        try:
            return _open_rgb(path).size
        except Exception as error:  # Pillow raises anything on damaged files
            return str(error)

    # The filter is set here and not in the threads, which share it.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        return dict(zip(files, pool.map(size_of, files), strict=True))


def _read_caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"data: {path} is not UTF-8; save the file as UTF-8") from error


def _read_square(path: Path, size: int) -> Tensor:
    """Read an image as uint8 (3, size, size): resize the shorter side to `size`, then crop the center."""
    return torch.from_numpy(np.array(cover(read_rgb(path, "data"), size, size))).permute(2, 0, 1)


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize an image so that it just covers this size, with Lanczos filtering, and crop the center."""
    if image.size == (width, height):
        return image
    shorter = min(image.size)
    if max(image.size) > 8 * shorter:  # resized as a whole, a line of pixels would fill the memory
        sides = min(image.width, 8 * shorter), min(image.height, 8 * shorter)
        image = ImageOps.fit(image, sides, Image.Resampling.NEAREST)
    scale = max(width / image.width, height / image.height)
    sides = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(sides, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
