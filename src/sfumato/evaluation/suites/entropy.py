"""Entropy of the policy on a fixed set (Yuan et al. 2025, Figures 3 and 4)."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sfumato.data.classes import spread
from sfumato.data.prompts import find_prompts, read_prompts
from sfumato.engine.precision import autocast
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, ask_evenly, names_to_ask, repeated
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import PROMPTS
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import PLAIN, Drawing, Target
from sfumato.files import finite, write_text
from sfumato.naming import find_classes
from sfumato.policy import Generator
from sfumato.request import Words

ROWS = 16
"""Largest number of rows of units in the table; more units than this are grouped evenly."""


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Entropy in nats of the sampling distribution at each token: overall mean, by unit and by token."""

    images: int = 64
    """number of images, spread evenly over the classes or captions"""
    classes: tuple[str, ...] = ()
    """classes to draw, as names, numbers or ranges; all if none is given"""
    prompts: str | None = field(default=None, metadata=PROMPTS)
    """file of captions for a model that reads them; the class names of its judge if not given"""
    drawing: Drawing = field(default_factory=lambda: replace(PLAIN, precision="fp32"))

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.images < 1:
            raise UserError(f"images: {self.images} is too small; give at least 1")
        return self.measure

    def measure(self, target: Target) -> Measurement:
        """Return the mean entropy and one row per unit; `entropy.json` in the target's folder has the mean of every
        token."""
        policy = target.policy(self.drawing)
        words = self.ask(policy.generator)
        seeds = torch.arange(self.drawing.seed, self.drawing.seed + len(words))
        with autocast(target.device, self.drawing.precision):
            parts = [
                policy.sample(policy.request(words[index]), seeds[index]).entropy.cpu()
                for index in torch.arange(len(seeds)).split(self.drawing.batch_size)
            ]
        entropy = torch.cat(parts)  # (B, L)
        units = policy.generator.units
        by_unit = [part.mean(1) for part in entropy.split(units, dim=1)]
        tokens = {
            "by_token": entropy.mean(0).tolist(),
            "by_unit": [unit.mean().item() for unit in by_unit],
            "units": units,
        }
        write_text(target.folder / "entropy.json", json.dumps(finite(tokens), allow_nan=False) + "\n")
        figures = {"entropy": Figure.mean(entropy.mean(1).tolist())}
        numbers = torch.arange(len(units)).tensor_split(min(ROWS, len(units)))
        for group in numbers:
            first, last = int(group[0]), int(group[-1])
            size = sum(units[first : last + 1])
            name = f"unit {first + 1}" if first == last else f"units {first + 1} to {last + 1}"
            mean = torch.stack([by_unit[n] for n in group.tolist()]).mean(0)
            figures[f"{name} ({size} token{'s' if size > 1 else ''})"] = Figure.mean(mean.tolist())
        return figures

    def ask(self, generator: Generator) -> Words:
        """Return words for classes or captions, spread evenly over all of them."""
        if self.prompts is not None:
            return ask_evenly(generator, read_prompts(find_prompts(self.prompts)), self.images)
        names = names_to_ask(generator)
        labels = find_classes(self.classes, names) or range(len(names))
        chosen = [labels[i] for i in spread(len(labels), min(self.images, len(labels)))]
        return repeated(ask_classes(generator, chosen, names), self.images)
