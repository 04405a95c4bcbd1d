"""Any suite at several values of guidance (Yuan et al. 2025, Figure 6)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sfumato.errors import UserError
from sfumato.evaluation.measurement import Measurement
from sfumato.evaluation.plots import plot_sweep
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.suites.accuracy import AccuracySuite
from sfumato.evaluation.suites.alignment import Alignment
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.suites.dpg import DPG
from sfumato.evaluation.suites.drawbench import DrawBench
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.evaluation.suites.geneval import GenEval
from sfumato.evaluation.suites.imagenet import ImageNet
from sfumato.evaluation.suites.t2i_compbench import T2ICompBench
from sfumato.evaluation.tables import Results
from sfumato.evaluation.targets import Target

Swept = AccuracySuite | Alignment | ImageNet | Entropy | Diversity | DrawBench | GenEval | DPG | T2ICompBench
"""Suites that draw with guidance."""


@dataclass(frozen=True, kw_only=True)
class GuidanceSweep:
    """Another suite (--of NAME, and its options) at several values of guidance."""

    values: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """values of guidance; 0 means no guidance"""
    of: Swept = field(default_factory=AccuracySuite)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if not self.values or len(set(self.values)) < len(self.values):
            raise UserError(f"values: {self.values} is empty or repeats a value of guidance; give each value once")
        sweep = {
            value: replace(self.of, drawing=replace(self.of.drawing, guidance=value)).prepare(device, folder)
            for value in self.values
        }

        def measure(target: Target) -> Measurement:
            if target.has_images:
                raise UserError(f"target: {target.name} is a set of images, whose guidance is fixed; give a model")
            figures = {}
            for value, measure_at in sweep.items():
                place = target.folder / f"guidance-{value:g}"
                place.mkdir(parents=True, exist_ok=True)
                measured = measure_at(replace(target, folder=place))
                figures |= {f"{self.prefix(value)}{name}": figure for name, figure in measured.items()}
            return figures

        return measure

    def plot(self, results: Results, path: Path) -> None:
        """Plot every figure of the suite against guidance, with one line per target."""
        swept = {
            target: {
                value: {name.removeprefix(p): f for name, f in measured.items() if name.startswith(p)}
                for value, p in ((value, self.prefix(value)) for value in self.values)
            }
            for target, measured in results.items()
        }
        plot_sweep(swept, "guidance", path)

    @staticmethod
    def prefix(value: float) -> str:
        """Return the prefix of the names of figures at a value."""
        return f"guidance {value:g}: "
