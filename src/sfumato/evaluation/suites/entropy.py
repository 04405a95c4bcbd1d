"""How uncertain the policy is on a fixed set (Yuan et al. 2025, Figures 3 and 4)."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sfumato.data.classes import find_classes, spread
from sfumato.data.prompts import find_prompts, read_prompts
from sfumato.emoji.judges import load_classifier
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, ask_evenly, repeated
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import PLAIN, Drawing, Target
from sfumato.files import write_text
from sfumato.policy import Generator
from sfumato.rollout import Conditions

ROWS = 16
"""of the table; more units than these are put together, equally many in each row"""


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Entropy in nats of the distribution at each token while drawing: in the mean, by unit and by token."""

    images: int = 64
    """conditions, spread over all there are; an image each"""
    classes: tuple[str, ...] = ()
    """names, numbers or ranges; spread over all if none is given"""
    prompts: str | None = None
    """file of captions for a model that reads them; the names of the bundled classes if not given"""
    drawing: Drawing = field(default_factory=lambda: replace(PLAIN))

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.images < 1:
            raise UserError(f"images: {self.images} is too small; give at least 1")
        return self.measure

    def measure(self, target: Target) -> Measurement:
        """A row in the mean and one a unit; `entropy.json` in the target's folder has the mean of every token."""
        policy, keep = target.policy(self.drawing)
        conditions = self.ask(policy.generator, self.drawing)
        seeds = torch.arange(self.drawing.seed, self.drawing.seed + len(conditions))
        parts = [
            policy.sample(conditions[index].to(target.device), seeds[index], keep).entropy.cpu()
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
        write_text(target.folder / "entropy.json", json.dumps(tokens) + "\n")
        figures = {"entropy": Figure.mean(entropy.mean(1).tolist())}
        numbers = torch.arange(len(units)).tensor_split(min(ROWS, len(units)))
        for group in numbers:
            first, last = int(group[0]), int(group[-1])
            size = sum(units[first : last + 1])
            name = f"unit {first + 1}" if first == last else f"units {first + 1} to {last + 1}"
            mean = torch.stack([by_unit[n] for n in group.tolist()]).mean(0)
            figures[f"{name} ({size} token{'s' if size > 1 else ''})"] = Figure.mean(mean.tolist())
        return figures

    def ask(self, generator: Generator, drawing: Drawing) -> Conditions:
        """Classes or captions, spread over all there are."""
        if self.prompts is not None:
            return ask_evenly(generator, drawing, read_prompts(find_prompts(self.prompts)), self.images)
        names = load_classifier().class_names if generator.text_encoder else generator.class_names
        labels = find_classes(self.classes, names) or range(len(names))
        chosen = [labels[i] for i in spread(len(labels), min(self.images, len(labels)))]
        return repeated(ask_classes(generator, drawing, chosen, names), self.images)
