"""`sfumato sample MODEL`."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.engine.engine_config import check_seed
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.settings import SettingsOptions

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of files that `--out` may name."""


@dataclass(frozen=True, kw_only=True)
class Sample(SettingsOptions):
    """Draw images with the model's own sampling settings unless overridden."""

    model: tyro.conf.Positional[str]
    """bundled or released model (emoji-var, var-d16, ...), run or checkpoint folder, or path/to/file.py:build"""
    classes: tuple[str, ...] = ()
    """class names or numbers; if none are given, 16 classes spread over all classes"""
    prompts: tuple[str, ...] = ()
    """captions, or one file of captions, for a model that reads captions"""
    count: int = 4
    """number of images per class or caption"""
    seed: int = 0
    """seed of the first image; it increases by 1 for each further image"""
    out: Path = Path("samples.png")
    """file to write, .png, .jpg or .webp; for a folder (a name without an ending), one PNG file per image. The texts
    of a model that writes one before each image are written beside them, as .txt"""
    smooth: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """mix codes as in VAR's "more smooth" sampling"""
    weights: Path | None = None
    """file with the transformer of a released model, or FILE::ema; downloaded from the Hugging Face Hub if not given"""
    tokenizer: Path | None = None
    """file with the tokenizer of a released model; downloaded from the Hugging Face Hub if not given"""
    text_encoder: str | None = None
    """Hugging Face Hub id or folder of a text encoder to use instead of the model's own"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""
    precision: Precision = "auto"
    """precision of the arithmetic; auto is bf16 on a GPU and fp32 on the CPU"""

    def __call__(self) -> int:
        import torch

        from sfumato.data.pictures import grid, save_picture, to_pictures
        from sfumato.engine.precision import autocast
        from sfumato.engine.process import find_device
        from sfumato.families import load_generator
        from sfumato.files import check_writable, write_text
        from sfumato.policy import Policy

        if self.count < 1:
            raise UserError(f"count: {self.count} is too small; give at least 1")
        check_seed(self.seed)
        into_folder = not self.out.suffix or self.out.is_dir()
        if not into_folder and self.out.suffix.lower() not in FORMATS:
            raise UserError(f"out: {self.out} is not a {', '.join(FORMATS)} file; give another ending, or a folder")
        check_writable("out", self.out if into_folder else self.out.parent)
        generator = load_generator(
            self.model,
            weights=self.weights,
            tokenizer=self.tokenizer,
            device=find_device(self.device),
            text_encoder=self.text_encoder,
        )
        if self.smooth and not hasattr(generator, "sample_smooth"):
            raise UserError("smooth: --smooth works only with VAR models")
        policy = Policy(generator, self.settings(generator.card.settings))
        request = policy.request(self.words(generator).repeat(self.count))
        seeds = torch.arange(self.seed, self.seed + len(request))
        with autocast(policy.device, self.precision):
            if self.smooth:
                pictures, texts = self.draw_smooth(policy, request, seeds), ()
            else:
                pictures, tokens = policy.draw_with_tokens(request, seeds, 32)
                texts = policy.texts(tokens)
        names, console = request.words.names, Console(markup=False)
        labels = [f"{name}, seed {seed}: " for name, seed in zip(names, seeds.tolist(), strict=True)]
        for label, text in zip(labels, texts, strict=bool(texts)):
            console.print(f"{label}{text}", highlight=False, soft_wrap=True)
        if into_folder:
            for picture, name, seed in zip(to_pictures(pictures), request.words.names, seeds.tolist(), strict=True):
                save_picture(picture, self.out / f"{file_name(name)}-{seed}.png")
        else:
            columns = min(len(pictures), self.count * max(1, 8 // self.count))  # the images of a class stay in one row
            zoom = max(1, 128 // pictures.shape[-1])
            save_picture(grid(pictures, columns, zoom, labels=request.words.names), self.out)
        if texts and into_folder:
            for name, seed, text in zip(names, seeds.tolist(), texts, strict=True):
                write_text(self.out / f"{file_name(name)}-{seed}.txt", f"{text}\n")
        elif texts:
            lines = [f"{label}{text}\n" for label, text in zip(labels, texts, strict=True)]
            write_text(self.out.with_suffix(".txt"), "".join(lines))
        settings = str(policy.settings) or "the model's own distribution"
        console.print(f"{len(pictures)} images, {settings}: {self.out}", highlight=False, soft_wrap=True)
        return 0

    def draw_smooth(self, policy: Any, request: Any, seeds: Any) -> Any:
        """Draw pictures with the family's own mixing of codes."""
        import torch

        inputs = request.inputs.to(policy.device)
        parts = [
            policy.generator.sample_smooth(inputs[index], seeds[index], policy.settings)
            for index in torch.arange(len(seeds)).split(32)
        ]
        return torch.cat(parts)

    def words(self, generator: Any) -> Any:
        """Return the requested classes or captions, once each."""
        from sfumato.data.classes import spread
        from sfumato.data.prompts import find_prompts, looks_like_file, read_prompts
        from sfumato.naming import class_words, find_classes
        from sfumato.request import Words

        names = generator.card.class_names
        if names:
            if self.prompts:
                raise UserError(f"prompts: {self.model} draws classes, not captions; give --classes")
            return class_words(find_classes(self.classes, names) or spread(len(names), min(16, len(names))), names)
        if self.classes:
            raise UserError(f"classes: {self.model} reads captions; give --prompts")
        if not self.prompts:
            raise UserError(f'prompts: {self.model} reads captions; give some, e.g. --prompts "red apple"')
        captions = list(self.prompts)
        if not all(map(str.strip, captions)):
            raise UserError("prompts: a caption is empty; write one, or leave it out")
        # A misspelled file must not be drawn as a caption: `read_prompts` says that it does not exist.
        if len(captions) == 1 and (os.path.isfile(file := find_prompts(captions[0])) or looks_like_file(captions[0])):
            captions = [prompt.caption for prompt in read_prompts(file)]
        return Words(names=tuple(captions))


def file_name(name: str) -> str:
    """Return a class or the beginning of a caption as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "image"


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato sample`."""
    return parse_options(Sample, "sample", arguments)
