"""Emoji on plain backgrounds, from the unpacked npm package `emoji-datasource-google`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.images import FolderImages, ImageSource


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Background and lighting of an emoji."""

    background: tuple[float, float, float]
    """RGB in [0, 1]"""
    light: float = 1.0
    """brightness factor of the whole image"""
    weight: float = 1.0
    """relative frequency"""
    words: str
    """description in captions, after the emoji's name"""


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
"""Eight grays from black to white, four tints, and three dimly lit grays."""

EMOJI_CATEGORIES = {"Animals & Nature", "Food & Drink", "Smileys & Emotion"}
EMOJI_SUBCATEGORIES = {"musical-instrument", "sport", "award-medal", "transport-air", "transport-water"}


class EmojiImages:
    """Noto emoji from the unpacked npm package `emoji-datasource-google`: 512 classes by 15 scenes.

    Item n is emoji n // 15 in scene n % 15. Emoji are drawn at 48 of 64 pixels, so that even a white emoji on black
    yields a dark image, and brightness and color vary within each class.

    Half of the captions are the emoji's name; the other half also describe the scene: "red apple on a blue background".
    Every tenth pair of an emoji and a scene description is held out.
    """

    def __init__(self, package: str | Path, size: int = 64, scenes: Sequence[Scene] = EMOJI_SCENES):
        package = Path(package)
        entries = json.loads((package / "emoji.json").read_text("utf-8"))
        entries = sorted((e for e in entries if _is_emoji_class(e)), key=lambda e: e["sort_order"])
        self.class_names = tuple(e["name"].lower() for e in entries)
        self.scenes = tuple(scenes)
        self.sprites = torch.stack([_read_sprite(package / "img/google/64" / e["image"], size) for e in entries])
        self.weights = torch.tensor([s.weight for s in self.scenes]).repeat(len(entries))
        words = sorted({s.words for s in self.scenes})
        place = torch.tensor([words.index(s.words) for s in self.scenes])
        pairs = 7 * torch.arange(len(entries))[:, None] + place
        self.validation = (pairs % 10 == 0).flatten()

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
        """Return the name of an item's emoji, with or without its scene."""
        name, scene = self.class_names[item // len(self.scenes)], self.scenes[item % len(self.scenes)]
        return f"{name} {scene.words}" if with_scene else name


def compose(
    sprites: Float[Tensor, "B 4 H W"], backgrounds: Float[Tensor, "B 3"], lights: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Place sprites (premultiplied RGBA in [0, 1]) on plain backgrounds, then multiply by `lights`."""
    color, alpha = sprites[:, :3], sprites[:, 3:]
    return (color + (1 - alpha) * backgrounds[:, :, None, None]).clamp(0, 1) * lights[:, None, None, None]


def _is_emoji_class(entry: dict) -> bool:
    """Whether an emoji is a class: animals, food, smileys, instruments, sports, medals, aircraft and watercraft.

    Flags, signs and skin tones are excluded.
    """
    if not entry["has_img_google"] or entry["subcategory"] == "emotion":
        return False
    return entry["category"] in EMOJI_CATEGORIES or entry["subcategory"] in EMOJI_SUBCATEGORIES


def _read_sprite(path: Path, size: int, share: float = 0.75) -> Tensor:
    """Read a 64-pixel emoji as premultiplied RGBA (4, size, size), centered, with a width of `share` of the canvas."""
    with Image.open(path) as file:
        image = file.convert("RGBA").convert("RGBa")  # premultiplied, so that hidden colors do not bleed
    inner = round(size * share)
    image = image.resize((inner, inner), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(image, ((size - inner) // 2, (size - inner) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255


def open_source(path: str | Path, size: int) -> ImageSource:
    """Open the emoji package if `path` contains one, otherwise a folder of images."""
    if (Path(path) / "emoji.json").is_file():
        return EmojiImages(path, size)
    return FolderImages(path, size)
