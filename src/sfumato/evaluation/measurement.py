"""The measurement of one target by a suite, with confidence intervals."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sfumato.files import finite, write_text

RESAMPLES = 1000
"""Number of resamples of a bootstrap."""
LEVEL = 0.95
"""Probability of a confidence interval."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A number; if it is a mean over images (or classes, or prompts), also the values of which it is the mean."""

    value: float
    """the number; NaN if nothing has a score"""
    parts: tuple[float, ...] = ()
    """values of which the number is the mean; NaN means "no score" and is left out"""
    basis: str = ""
    """what the number was computed from, where that is not obvious"""

    @staticmethod
    def mean(parts: Sequence[float], basis: str = "") -> "Figure":
        """Return the mean of the parts that have a score; NaN if none has."""
        known = [part for part in parts if not math.isnan(part)]
        return Figure(math.fsum(known) / len(known) if known else math.nan, tuple(parts), basis)

    def interval(self) -> Interval | None:
        """Return the percentile bootstrap interval over the parts, with a fixed seed; None for fewer than two parts."""
        return bootstrap(self.parts)

    def difference(self, first: "Figure") -> tuple[float, Interval | None]:
        """Return the difference of this figure to the first, and its interval.

        If both have the same number of parts, the parts are paired (same seeds and conditions), so that a part without
        a score on one side counts on neither.
        """
        if self.parts and len(self.parts) == len(first.parts):
            pairs = Figure.mean(np.subtract(self.parts, first.parts).tolist())
            return pairs.value, pairs.interval()
        return self.value - first.value, bootstrap(self.parts, first.parts)


Measurement = Mapping[str, Figure]
"""Figures by name, in the order of the table."""


def bootstrap(parts: Sequence[float] | np.ndarray, minus: Sequence[float] | np.ndarray = ()) -> Interval | None:
    """Return the percentile bootstrap interval of a mean (Efron & Tibshirani 1993, ch. 13), or of the difference of two
    means of independent parts. NaN parts are left out; the result is None if fewer than two remain."""
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
    """Write all figures with their parts as JSON, in which a value or part that is not finite is null."""
    figures = {name: {**asdict(figure), "parts": list(figure.parts)} for name, figure in measurement.items()}
    write_text(path, json.dumps(finite(figures), allow_nan=False) + "\n")


def read_measurement(path: Path) -> Measurement:
    """Read a file that `write_measurement` wrote. Null is read as NaN, "no score"."""
    figures = json.loads(path.read_text("utf-8"))
    return {
        name: Figure(_known(figure["value"]), tuple(map(_known, figure["parts"])), figure["basis"])
        for name, figure in figures.items()
    }


def _known(value: float | None) -> float:
    return math.nan if value is None else value
