"""What is evaluated: a model, which draws with fixed seeds, or images that are there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.data.images import find_images
from sfumato.errors import UserError
from sfumato.evaluation.image_sets import ArrayImages, DrawnImages, Images, StoredImages, by_number
from sfumato.families.library import find_model, load, locate
from sfumato.families.releases import RELEASES
from sfumato.files import state
from sfumato.policy import Generator, LogitsFilter, Policy, drawing_policy
from sfumato.rollout import Conditions
from sfumato.settings import InferenceOptions


@dataclass(frozen=True, kw_only=True)
class Drawing(InferenceOptions):
    """How models draw what is evaluated: the same for all targets, but for what each model has settings of its own."""

    seed: int = 0
    """the n-th image has seed + n"""
    batch_size: int = 64
    """images that are drawn and measured at once"""
    weights: Path | None = None
    """file of a released transformer"""
    tokenizer: Path | None = None
    """file of a released tokenizer"""
    text_encoder: str | None = None
    """hub id or folder of the text encoder, if not the model's own"""

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} is too small; give at least 1")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} is negative; give a number from 0 up")
        super().__post_init__()


PLAIN = Drawing(guidance=0.0, temperature=1.0, top_k=0, top_p=0.0)
"""Draws from the distribution itself."""

Ask = Callable[[Generator, Drawing], Conditions]
"""What a generator is asked to draw: one condition an image, on the CPU."""


@dataclass(frozen=True)
class Target:
    """What is evaluated, by name or path, and where what is made of it is kept."""

    name: str
    """run folder, checkpoint, bundled or released model; or a folder of images, or an .npz file"""
    folder: Path
    """of this target alone"""
    device: torch.device

    @property
    def has_images(self) -> bool:
        """Whether it is images rather than a model."""
        path = Path(self.name)
        if path.suffix.lower() == ".npz":
            return True
        if self.name in RELEASES or not path.is_dir():
            return False
        try:
            find_model(path)
        except UserError:
            return bool(find_images(path))
        return False

    def identity(self) -> str:
        """What changes when the target does: paths, sizes and times of the files that hold it (those of a released
        model are options of the suite).

        Raises:
            UserError: there is no such target.
        """
        if self.name in RELEASES:
            return self.name
        if Path(self.name).suffix.lower() == ".npz" and not Path(self.name).is_file():
            raise UserError(f"target: {self.name} is not a file; give a model, a folder of images or an .npz file")
        path = Path(self.name)
        if self.has_images and path.is_dir():
            return state(path)
        parts = ("transformer.safetensors", "config.json")  # the config has the settings that images are drawn with
        files = [path] if self.has_images else [locate(self.name) / part for part in parts]
        return " ".join(map(state, files))

    def policy(self, drawing: Drawing) -> tuple[Policy, LogitsFilter]:
        """The model, ready to draw, and its filter.

        Raises:
            UserError: the target is images, or a model that cannot be loaded.
        """
        if self.has_images:
            raise UserError(f"target: {self.name} is images, and this suite asks a model; give a model")
        weights, tokenizer = (drawing.weights, drawing.tokenizer) if self.name in RELEASES else (None, None)
        generator = load(self.name, weights=weights, tokenizer=tokenizer, device=self.device).generator
        return drawing_policy(generator, drawing.inference(generator.inference))

    def images(self, drawing: Drawing, ask: Ask, place: Callable[[int], str] = by_number) -> Images:
        """The images that are there, or those that the model draws of what it is asked.

        Args:
            drawing: how a model draws.
            ask: what a model is asked for.
            place: path of the n-th drawn image below the target's `images`.

        Raises:
            UserError: the target cannot be read, or does not know what it is asked for.
        """
        if self.has_images:
            return ArrayImages(Path(self.name)) if Path(self.name).is_file() else StoredImages(Path(self.name))
        policy, keep = self.policy(drawing)
        conditions = ask(policy.generator, drawing)
        seeds = torch.arange(drawing.seed, drawing.seed + len(conditions))
        return DrawnImages(policy, conditions, seeds, self.folder / "images", keep, place)
