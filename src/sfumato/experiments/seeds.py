"""Statistics over seeds: means with intervals, and ranks with their uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.evaluation.measurement import LEVEL, Figure, Interval

RESAMPLES = 10_000
"""Number of bootstrap resamples of the ranks."""


def t_quantile(freedom: int) -> float:
    """Return the number t with P(|T| < t) = 0.95 for Student's T with this many degrees of freedom.

    With T = √n·tan θ, the density of θ is proportional to cos^(n-1) θ, which is integrated on a grid.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(LEVEL * area[-1], area, angles))


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    value: float
    interval: Interval | None
    """95 % interval by Student's t; None for fewer than two seeds"""


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean over seeds; values that are not a number are left out."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Mean(math.nan, None)
    mean = float(known.mean())
    if len(known) < 2:
        return Mean(mean, None)
    half = t_quantile(len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Mean(mean, (mean - half, mean + half))


@dataclass(frozen=True)
class OverSeeds(Figure):
    """A figure that is the mean over seeds; its parts are the values of the seeds, its intervals Student's t."""

    @staticmethod
    def of(figures: Sequence[Figure]) -> "OverSeeds":
        """Return the mean of the figures of all seeds."""
        parts = tuple(figure.value for figure in figures)
        return OverSeeds(mean_of(parts).value, parts, figures[0].basis)

    def interval(self) -> Interval | None:
        """Return the interval over the seeds."""
        return mean_of(self.parts).interval

    def difference(self, first: Figure) -> tuple[float, Interval | None]:
        """Return the mean over seeds of the difference of this figure to the first, and its interval."""
        mean = mean_of(np.subtract(self.parts, first.parts).tolist())
        return mean.value, mean.interval


@dataclass(frozen=True)
class Rank:
    """Place of an arm among all, 1 is the best, over resamples of the seeds."""

    mean: float
    interval: Interval
    best: float
    """share of the resamples in which it is the best; equals share it"""
    beats: Mapping[str, float]
    """share of the resamples in which its mean is higher than that of each other arm; equal means count half"""


def ranks(values: Mapping[str, Sequence[float]]) -> dict[str, Rank]:
    """Rank arms by the means of their values over seeds, in bootstrap resamples of the seeds with a fixed seed.

    The resamples of different arms are independent. Arms are returned in the order of their mean ranks.
    """
    rng = np.random.default_rng(0)
    names = list(values)
    means = np.stack([_resampled(np.asarray(values[name]), rng) for name in names])
    higher = (means[:, None] > means[None]) + 0.5 * (means[:, None] == means[None])
    places = len(names) + 0.5 - higher.sum(1)  # an arm equals itself, which is the half
    top = means == means.max(0)
    best = (top / top.sum(0)).mean(1)
    found = {}
    for row in np.argsort(places.mean(1), kind="stable"):
        low, high = np.quantile(places[row], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        beats = {other: float(higher[row, at].mean()) for at, other in enumerate(names) if at != row}
        found[names[row]] = Rank(float(places[row].mean()), (float(low), float(high)), float(best[row]), beats)
    return found


def _resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the means of the resamples."""
    return values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
