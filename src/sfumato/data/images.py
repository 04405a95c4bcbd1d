"""Images for pre-training: any folder of pictures, or the emoji of `emoji-datasource-google`.

A source is a finite list of (image, class) pairs with sampling weights, so that a tokenizer can be trained on
draws from it and its tokens can be cached once for the generator.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """Labelled images to learn from."""

    class_names: tuple[str, ...]
    weights: Float[Tensor, " N"]
    """relative frequency of each of the N items"""
    held_out: Bool[Tensor, " N"]
    """items that captions are not trained on, for evaluation"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        """Images in [0, 1] and class labels of the items with these numbers."""
        ...

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        """A caption of each of the items with these numbers, one of several where there are several."""
        ...


class FolderImages:
    """A folder of images, one sub-folder a class (or none: one class), resized and centre-cropped to a square.

    The caption of `cat/1.png` is the text of `cat/1.txt`, or without such a file the class name.
    """

    def __init__(self, folder: str | Path, size: int):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"data: {folder} is not a folder; give a folder with one sub-folder of images a class")
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
        self.held_out = torch.zeros(len(files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        return self._images[index].float() / 255, self._labels[index]

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        return [self._captions[i] for i in index.tolist()]


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, by path, numbers by their value (2.png before 10.png); hidden files, and all in
    hidden folders, are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    shown = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(shown, key=lambda path: [numbers_by_value(part) for part in path.parts])


def numbers_by_value(name: str) -> list[str | int]:
    """A key to sort names by, in which runs of digits count as numbers."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def to_rgb(picture: Image.Image) -> Image.Image:
    """A copy as RGB: upright, 16 bits reduced to 8, transparent parts on white.

    Raises:
        ValueError: its pixels are floating-point numbers.
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
    """An image file as RGB (`to_rgb`).

    Raises:
        UserError: the file is no image, or has floating-point pixels; the message begins with `field`.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow has them all
        raise UserError(f"{field}: {path} cannot be read as an image ({error}); remove or replace it") from error


def _read_caption(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"data: {path} is not UTF-8; save the file as UTF-8") from error


def _read_square(path: Path, size: int) -> Tensor:
    """One image as uint8 (3, size, size): short side resized to `size`, centre cropped."""
    image = read_rgb(path, "data")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What an emoji is laid on and how it is lit."""

    background: tuple[float, float, float]
    """RGB in [0, 1]"""
    light: float = 1.0
    """factor on the whole picture"""
    weight: float = 1.0
    """relative frequency"""
    words: str
    """how a caption puts it, after the emoji's name"""


_GREY_WORDS = ("black", "dark grey", "dark grey", "grey", "grey", "light grey", "light grey", "white")
_GREYS = [
    Scene(background=(g / 7, g / 7, g / 7), words=f"on a {word} background") for g, word in enumerate(_GREY_WORDS)
]
_TINTS = [
    Scene(background=rgb, weight=0.75, words=f"on a {word} background")
    for word, rgb in {
        "red": (0.85, 0.25, 0.25),
        "green": (0.25, 0.65, 0.35),
        "blue": (0.25, 0.4, 0.85),
        "yellow": (0.95, 0.8, 0.3),
    }.items()
]
_DIM = [Scene(background=(g, g, g), light=0.5, weight=0.5, words="in dim light") for g in (0.0, 0.5, 1.0)]
EMOJI_SCENES: tuple[Scene, ...] = (*_GREYS, *_TINTS, *_DIM)
"""Eight greys from black to white, four tints, and three dimly lit greys."""

EMOJI_CATEGORIES = {"Animals & Nature", "Food & Drink", "Smileys & Emotion"}
EMOJI_SUBCATEGORIES = {"musical-instrument", "sport", "award-medal", "transport-air", "transport-water"}


class EmojiImages:
    """Noto emoji from the unpacked npm package `emoji-datasource-google`: 512 classes by 15 scenes.

    Item n is emoji n // 15 in scene n % 15. Emoji are drawn at 48 of 64 pixels, so that even a white one on
    black leaves the picture dark, and brightness and colour vary within every class.

    A caption is the emoji's name, or as often the name and the scene: "red apple on a blue background". Of the pairs
    of an emoji and a scene's words every tenth is held out.
    """

    def __init__(self, package: str | Path, size: int = 64, scenes: Sequence[Scene] = EMOJI_SCENES):
        package = Path(package)
        entries = json.loads((package / "emoji.json").read_text())
        entries = sorted((e for e in entries if _is_emoji_class(e)), key=lambda e: e["sort_order"])
        self.class_names = tuple(e["name"].lower() for e in entries)
        self.scenes = tuple(scenes)
        self.sprites = torch.stack([_read_sprite(package / "img/google/64" / e["image"], size) for e in entries])
        self.weights = torch.tensor([s.weight for s in self.scenes]).repeat(len(entries))
        words = sorted({s.words for s in self.scenes})
        place = torch.tensor([words.index(s.words) for s in self.scenes])
        pairs = 7 * torch.arange(len(entries))[:, None] + place
        self.held_out = (pairs % 10 == 0).flatten()

    def __len__(self) -> int:
        return len(self.sprites) * len(self.scenes)

    def __getitem__(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]:
        labels, scene = index // len(self.scenes), index % len(self.scenes)
        backgrounds = torch.tensor([s.background for s in self.scenes])[scene]
        lights = torch.tensor([s.light for s in self.scenes])[scene]
        return compose(self.sprites[labels], backgrounds, lights), labels

    def captions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> list[str]:
        with_scene = torch.rand(len(index), generator=rng) < 0.5
        return [self.caption(i, said) for i, said in zip(index.tolist(), with_scene.tolist(), strict=True)]

    def caption(self, item: int, with_scene: bool) -> str:
        """The name of an item's emoji, with or without its scene."""
        name, scene = self.class_names[item // len(self.scenes)], self.scenes[item % len(self.scenes)]
        return f"{name} {scene.words}" if with_scene else name


def compose(
    sprites: Float[Tensor, "B 4 H W"], backgrounds: Float[Tensor, "B 3"], lights: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Lay sprites (premultiplied RGBA in [0, 1]) on plain backgrounds, then dim by `lights`."""
    colour, alpha = sprites[:, :3], sprites[:, 3:]
    return (colour + (1 - alpha) * backgrounds[:, :, None, None]).clamp(0, 1) * lights[:, None, None, None]


def _is_emoji_class(entry: dict) -> bool:
    """Animals, food, smileys, instruments, sports, medals, craft of air and water: no flags, signs or skin tones."""
    if not entry["has_img_google"] or entry["subcategory"] == "emotion":
        return False
    return entry["category"] in EMOJI_CATEGORIES or entry["subcategory"] in EMOJI_SUBCATEGORIES


def _read_sprite(path: Path, size: int, share: float = 0.75) -> Tensor:
    """A 64-pixel emoji as premultiplied RGBA (4, size, size), `share` of the canvas wide and centred."""
    with Image.open(path) as file:
        image = file.convert("RGBA").convert("RGBa")  # premultiplied, so that resizing does not bleed hidden colours
    inner = round(size * share)
    image = image.resize((inner, inner), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(image, ((size - inner) // 2, (size - inner) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def open_source(path: str | Path, size: int) -> ImageSource:
    """The emoji package if `path` holds one, else a folder of images."""
    if (Path(path) / "emoji.json").is_file():
        return EmojiImages(path, size)
    return FolderImages(path, size)
