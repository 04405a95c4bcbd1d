"""What a suite finds of one target, and how sure it is."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.files import write_text

RESAMPLES = 1000
"""of a bootstrap"""
LEVEL = 0.95
"""probability of a confidence interval"""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A number; where it is a mean over images (or classes, or prompts), also what it is the mean of."""

    value: float
    parts: tuple[float, ...] = ()
    """NaN is "no score" and is left out"""

    @staticmethod
    def mean(parts: Sequence[float]) -> "Figure":
        """The mean of what has a score; NaN if nothing has."""
        known = [part for part in parts if not math.isnan(part)]
        return Figure(math.fsum(known) / len(known) if known else math.nan, tuple(parts))

    def interval(self) -> Interval | None:
        """Percentile bootstrap over the parts, with a fixed seed; None where there are fewer than two."""
        return bootstrap(self.parts)

    def difference(self, first: "Figure") -> tuple[float, Interval | None]:
        """How much more this is than the first, and the interval.

        Where there are equally many parts they are taken in pairs (the same seeds and conditions), so that what lacks a
        score on one side counts on neither.
        """
        if self.parts and len(self.parts) == len(first.parts):
            pairs = Figure.mean(np.subtract(self.parts, first.parts).tolist())
            return pairs.value, pairs.interval()
        return self.value - first.value, bootstrap(self.parts, first.parts)


Measurement = Mapping[str, Figure]
"""Figures by name, in the order of the table."""


def bootstrap(parts: Sequence[float] | np.ndarray, minus: Sequence[float] | np.ndarray = ()) -> Interval | None:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, ch. 13), or of a difference of two means
    of independent parts. NaN parts are left out; None where there are fewer than two."""
    samples = [np.asarray(p, dtype=np.float64) for p in ((parts, minus) if len(minus) else (parts,))]
    samples = [s[~np.isnan(s)] for s in samples]
    if any(len(s) < 2 for s in samples):
        return None
    rng = np.random.default_rng(0)
    means = [np.array([s[rng.integers(len(s), size=len(s))].mean() for _ in range(RESAMPLES)]) for s in samples]
    total = means[0] - means[1] if len(means) > 1 else means[0]
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def write_measurement(path: Path, measurement: Measurement) -> None:
    """All figures with their parts, as JSON."""
    figures = {name: {"value": figure.value, "parts": figure.parts} for name, figure in measurement.items()}
    write_text(path, json.dumps(figures) + "\n")


def read_measurement(path: Path) -> Measurement:
    """What `write_measurement` wrote."""
    figures = json.loads(path.read_text())
    return {name: Figure(figure["value"], tuple(figure["parts"])) for name, figure in figures.items()}
