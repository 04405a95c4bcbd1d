"""Targets of an evaluation: a model, which draws with fixed seeds, or existing images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.images import find_images
from sfumato.engine.engine_config import check_seed
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.evaluation.image_sets import ArrayImages, DrawnImages, Images, StoredImages, by_number
from sfumato.evaluation.named_files import TEXT_ENCODER
from sfumato.families.library import AVERAGE, find_model, load_generator, locate, releases
from sfumato.files import state
from sfumato.plugins import is_path
from sfumato.policy import Generator, Policy
from sfumato.request import Words
from sfumato.settings import SettingsOptions
from sfumato.text.reader import ReadsCaptions


@dataclass(frozen=True, kw_only=True)
class Drawing(SettingsOptions):
    """How models draw the images of an evaluation. It is the same for all targets, except that each model keeps its own
    sampling settings unless they are overridden."""

    seed: int = 0
    """seed of the first image; the n-th image has seed + n"""
    batch_size: int = 64
    """number of images that are drawn and measured at once"""
    precision: Precision = "auto"
    """precision of the model's arithmetic; auto is bf16 on a GPU and fp32 on the CPU"""
    weights: Path | None = None
    """file with a released transformer"""
    tokenizer: Path | None = None
    """file with a released tokenizer"""
    text_encoder: str | None = field(default=None, metadata=TEXT_ENCODER)
    """hub id or folder of a text encoder other than the model's own"""

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} is too small; give at least 1")
        check_seed(self.seed)
        super().__post_init__()


PLAIN = Drawing(guidance=0.0, temperature=1.0, top_k=0, top_p=0.0)
"""Sampling from the unmodified distribution."""

Ask = Callable[[Generator], Words]
"""Returns the words of all images to draw with a generator."""


@dataclass(frozen=True)
class Target:
    """A target of an evaluation, by name or path, and the folder for its images and measurement."""

    name: str
    """run folder, checkpoint, or bundled or released model; or a folder of images, or an .npz file"""
    folder: Path
    """folder for this target only"""
    device: torch.device
    """where models draw, and images are measured"""

    @property
    def has_images(self) -> bool:
        """Whether the target is a set of images rather than a model."""
        path = Path(self.name)
        if path.suffix.lower() == ".npz":
            return True
        if self.name in releases() or not path.is_dir():
            return False
        try:
            find_model(path)
        except UserError:
            return bool(find_images(path))
        return False

    def identity(self) -> str:
        """Return a text that changes when the target does, from the contents of its files, wherever they are (the files
        of a released model are options of the suite).

        Raises:
            UserError: the target does not exist.
        """
        if self.name in releases():
            return self.name
        if Path(self.name).suffix.lower() == ".npz" and not Path(self.name).is_file():
            raise UserError(f"target: {self.name} is not a file; give a model, a folder of images or an .npz file")
        path = Path(self.name)
        if is_path(self.name):
            file = Path(self.name.rpartition(":")[0])
            if not file.is_file():
                raise UserError(f"target: {file} is not a file; give path/to/family.py:build")
            return f"{self.name.rpartition(':')[2]} {state(file)}"
        if self.has_images:
            return state(path)
        model = locate(self.name)
        networks = [*sorted(model.glob("transformer*")), *sorted(model.glob("adapter*")), model.parent / "shards"]
        files = [*networks, model / "config.json"]  # the config contains the sampling settings
        return ", ".join(f"{file.name} {state(file)}" for file in files if file.exists())

    def policy(self, drawing: Drawing) -> Policy:
        """Load the model as a policy.

        Raises:
            UserError: the target is a set of images, or a model that cannot be loaded.
        """
        if self.has_images:
            raise UserError(f"target: {self.name} is a set of images, and this suite needs a model; give a model")
        weights, tokenizer = drawing.weights, drawing.tokenizer
        if self.name not in releases():  # one target of several may be a release
            weights, tokenizer = weights if str(weights) == AVERAGE else None, None
        generator = load_generator(self.name, weights=weights, tokenizer=tokenizer, device=self.device)
        if drawing.text_encoder is not None and isinstance(generator, ReadsCaptions):
            generator.reader.use(drawing.text_encoder)
        return Policy(generator, drawing.settings(generator.card.settings))

    def images(self, drawing: Drawing, ask: Ask, place: Callable[[int], str] = by_number) -> Images:
        """Return the existing images, or those that the model draws.

        Args:
            drawing: how a model draws.
            ask: returns the words of the images to draw.
            place: returns the path of the n-th drawn image in the target's folder `images`.

        Raises:
            UserError: the target cannot be read, or cannot draw the requested images.
        """
        if self.has_images:
            return ArrayImages(Path(self.name)) if Path(self.name).is_file() else StoredImages(Path(self.name))
        policy = self.policy(drawing)
        words = ask(policy.generator)
        seeds = torch.arange(drawing.seed, drawing.seed + len(words))
        return DrawnImages(policy, words, seeds, self.folder / "images", place, drawing.precision)
