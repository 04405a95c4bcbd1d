"""The commands that use a model: draw with it, list its classes, write its weights for other code."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from sfumato.errors import UserError
from sfumato.policy import Generator, drawing_policy
from sfumato.rollout import Conditions
from sfumato.settings import InferenceOptions


@dataclass(frozen=True, kw_only=True)
class Sample(InferenceOptions):
    """Draw images, as the model is best drawn from if nothing else is asked for."""

    model: tyro.conf.Positional[str]
    """bundled model, run folder or checkpoint, or released model (var-d16 ..., llamagen-b-256 ...)"""
    classes: tuple[str, ...] = ()
    """class names or numbers; sixteen spread over all classes if none is given"""
    prompts: tuple[str, ...] = ()
    """captions, for a model that reads them; or one file of captions"""
    count: int = 4
    """images of each class or caption"""
    seed: int = 0
    """the n-th image has seed + n"""
    out: Path = Path("samples.png")
    """PNG file to write"""
    smooth: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """VAR's "more smooth" mixing of codes"""
    weights: Path | None = None
    """file of a released transformer"""
    tokenizer: Path | None = None
    """file of a released tokenizer"""
    text_encoder: str | None = None
    """hub id or folder of the text encoder, if not the model's own"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.data.pictures import grid, save_png
        from sfumato.engine.process import join
        from sfumato.families.library import load
        from sfumato.families.var.generator import VAR, sample_smooth
        from sfumato.files import check_writable

        if self.count < 1:
            raise UserError(f"count: {self.count} images; give at least 1")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"out: {self.out} is not a .png file; name one")
        check_writable("out", self.out.parent)
        device = join(self.device).device
        loaded = load(self.model, weights=self.weights, tokenizer=self.tokenizer, device=device).generator
        settings = self.inference(loaded.inference)
        policy, keep = drawing_policy(loaded, settings)
        generator = policy.generator
        conditions = self.conditions(generator, device).repeat(self.count).to(device)
        seeds = torch.arange(self.seed, self.seed + len(conditions))

        if self.smooth:
            if not isinstance(generator, VAR):
                raise UserError(f"smooth: {self.model} is no VAR; leave the option out")
            parts = torch.arange(len(conditions)).split(32)
            pictures = torch.cat(
                [sample_smooth(generator, conditions[i], seeds[i], keep, policy.temperature) for i in parts]
            )
        else:
            pictures = policy.draw(conditions, seeds, 32, keep)
        columns = min(len(pictures), self.count * max(1, 8 // self.count))  # a class's images stay in one row
        save_png(grid(pictures, columns=columns, zoom=max(1, 128 // pictures.shape[-1])), self.out)
        Console().print(f"{len(pictures)} images, {settings}: {self.out}", highlight=False)
        return 0

    def conditions(self, generator: Generator, device: torch.device) -> Conditions:
        """What is asked for: the classes or the captions, once each."""
        from sfumato.data.classes import caption_conditions, class_conditions, find_classes, spread
        from sfumato.data.prompts import find_prompts, read_prompts
        from sfumato.text.encoders import load_text_encoder

        if not generator.text_encoder:
            if self.prompts:
                raise UserError(f"prompts: {self.model} draws classes, not captions; give --classes")
            names = generator.class_names
            return class_conditions(find_classes(self.classes, names) or spread(len(names), 16), names)
        if self.classes:
            raise UserError(f"classes: {self.model} reads captions; give --prompts")
        if not self.prompts:
            raise UserError(f'prompts: {self.model} reads captions; give some, such as --prompts "red apple"')
        captions = list(self.prompts)
        if len(captions) == 1 and os.path.isfile(file := find_prompts(captions[0])):
            captions = [prompt.caption for prompt in read_prompts(file)]
        reader = load_text_encoder(self.text_encoder or generator.text_encoder, device)
        return caption_conditions(captions, reader.encode, generator.longest_caption)


@dataclass(frozen=True, kw_only=True)
class Classes:
    """List a model's classes, number and name."""

    model: tyro.conf.Positional[str]
    """bundled model, run folder or checkpoint, or released model"""

    def __call__(self) -> int:
        from sfumato.families.library import class_names

        names = class_names(self.model)
        if not names:
            raise UserError(f"model: {self.model} reads captions, it has no classes; draw with --prompts")
        for number, name in enumerate(names):
            Console().print(f"{number:4d}  {name}", highlight=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write weights with the published names, to be loaded by the original code."""

    model: tyro.conf.Positional[str]
    """run folder or checkpoint, or bundled model"""
    out: Path
    """folder to write"""
    format: str = "pth"
    """pth or safetensors"""

    def __call__(self) -> int:
        from sfumato.families.library import export

        for path in export(self.model, self.out, self.format):
            Console().print(str(path), highlight=False, soft_wrap=True)
        return 0


COMMANDS = {
    "sample": (Sample, "draw images from a bundled model, a run, or a released checkpoint"),
    "classes": (Classes, "list a model's classes"),
    "export": (Export, "write weights with the names of the original code"),
}
"""Commands by name, each with one line of help."""
