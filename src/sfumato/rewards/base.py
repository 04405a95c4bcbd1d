"""The protocol of a reward, and the weighted sum of several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.rollout import Conditions


@runtime_checkable
class Reward(Protocol):
    """Scores of B images in [0, 1], on the images' device; higher is better, NaN is "no score".

    Any function of this form is a reward. One that may have no score can say why in an attribute `last_failure`.
    """

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions, /) -> Float[Tensor, " B"]: ...


class RewardError(UserError):
    """A reward that failed, by name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reward of a sum: weight × (scale × score + offset), where the score may first become one of some levels."""

    reward: Reward
    weight: float = 1.0
    """0 only logs the reward"""
    scale: float = 1.0
    """multiplies the score"""
    offset: float = 0.0
    """added to the scaled score"""
    levels: tuple[float, ...] = ()
    """what the score becomes: the first level below the first threshold, the second from there on, ..."""
    thresholds: tuple[float, ...] = ()
    """ascending, one fewer than the levels; measured on the base model's samples if not given"""

    def __post_init__(self):
        if self.thresholds and len(self.thresholds) != len(self.levels) - 1:
            raise UserError(
                f"thresholds: {len(self.thresholds)} for {len(self.levels)} levels; give one fewer than levels, or none"
            )
        if list(self.thresholds) != sorted(self.thresholds):
            raise UserError(f"thresholds: {self.thresholds} do not ascend; sort them")
        if len(self.levels) == 1:
            raise UserError(f"levels: {self.levels} are all one; give at least two, or none")
        for name in ("weight", "scale", "offset"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name}: {getattr(self, name)} is not finite; give a number")

    def adjust(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Levels, scale and offset of raw scores; NaN stays NaN. Without thresholds the levels wait."""
        if self.thresholds:
            steps = torch.bucketize(scores, scores.new_tensor(self.thresholds), right=True)
            levels = scores.new_tensor(self.levels)[steps.clamp_max(len(self.thresholds))]
            scores = torch.where(scores.isnan(), torch.nan, levels)
        return self.scale * scores + self.offset


@dataclass(frozen=True)
class WeightedSum:
    """Rewards by name, each with its weight, scale and offset."""

    parts: Mapping[str, Part]

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], conditions: Conditions
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """The weighted sum, and every part's own scores, scaled and offset but not weighted.

        Raises:
            RewardError: a part raised, or its scores have the wrong shape or are infinite; the message names it.
        """
        scores = {name: part.adjust(score(name, part.reward, images, conditions)) for name, part in self.parts.items()}
        return self.total(scores), scores

    def total(self, scores: Mapping[str, Float[Tensor, " B"]]) -> Float[Tensor, " B"]:
        """The weighted sum of the parts' scores; NaN where a part that counts has none."""
        counted = [part.weight * scores[name] for name, part in self.parts.items() if part.weight]
        return torch.stack(counted).sum(0) if counted else torch.zeros_like(next(iter(scores.values())))

    def without_thresholds(self) -> tuple[str, ...]:
        """Names of the parts whose thresholds are still to be measured."""
        return tuple(name for name, part in self.parts.items() if part.levels and not part.thresholds)

    def require_thresholds(self) -> "WeightedSum":
        """Itself, where no images are at hand to measure thresholds on.

        Raises:
            UserError: a part has levels without thresholds.
        """
        for name in self.without_thresholds():
            raise UserError(
                f"reward: the levels of {name} have no thresholds; give some, as in levels=0,1&thresholds=0.3"
            )
        return self

    def with_thresholds(self, thresholds: Mapping[str, Sequence[float]]) -> "WeightedSum":
        """The same with the thresholds of these parts."""
        measured = {name: replace(self.parts[name], thresholds=tuple(values)) for name, values in thresholds.items()}
        return WeightedSum({**self.parts, **measured})

    def measure_thresholds(
        self, images: Float[Tensor, "B 3 H W"], conditions: Conditions
    ) -> dict[str, tuple[float, ...]]:
        """Thresholds that part the scores of these images into equally many for each level (three: at the terciles).

        Raises:
            RewardError: a part fails, or scores none of the images.
        """
        found = {}
        for name in self.without_thresholds():
            scores = score(name, self.parts[name].reward, images, conditions)
            known = scores[~scores.isnan()]
            if not len(known):
                raise RewardError(f"reward {name!r} scores none of {len(images)} images; give its thresholds")
            shares = torch.linspace(0, 1, len(self.parts[name].levels) + 1)[1:-1]
            found[name] = tuple(known.quantile(shares.to(known)).tolist())
        return found

    def check_scored(self, scores: Mapping[str, Float[Tensor, " B"]], max_unscored: float) -> None:
        """Complain about a part that has no score for more than this share of the images.

        Raises:
            RewardError: the message names the part, and why it had none if it says so.
        """
        for name, part in self.parts.items():
            unscored = int(scores[name].isnan().sum())
            if unscored > max_unscored * len(scores[name]):
                reason = getattr(part.reward, "last_failure", "")
                raise RewardError(
                    f"reward {name!r} has no score for {unscored} of {len(scores[name])} images, more than "
                    f"max_unscored {max_unscored}{f' ({reason})' if reason else ''}; mend it, or raise max_unscored"
                )


@torch.no_grad()
def score(name: str, reward: Reward, images: Tensor, conditions: Conditions) -> Float[Tensor, " B"]:
    """One reward's scores as float32 on the images' device, checked.

    Raises:
        RewardError: it raised, or its scores have the wrong shape or are infinite; the message names it.
    """
    try:
        scores = reward(images, conditions)
    except Exception as error:  # a user's code may fail in any way; the cause is kept
        raise RewardError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        found = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {name!r} returned {found} for {len(images)} images; return a tensor ({len(images)},)"
        )
    infinite = scores.isinf()
    if infinite.any():
        first = int(infinite.nonzero()[0, 0])
        raise RewardError(
            f"reward {name!r} returned {scores[first].item()} for {int(infinite.sum())} of {len(images)} images "
            f"(first: {conditions.names[first]!r}); return finite scores, or NaN for none"
        )
    return scores.to(images.device, torch.float32)


def statistics(total: Float[Tensor, " B"], scores: Mapping[str, Float[Tensor, " B"]]) -> dict[str, float]:
    """Mean and standard deviation of the total and of every part over the images that have a score, each part's
    correlation with the total (0 where one of the two is constant), and the share of images without a total."""
    metrics = {"reward_mean": _mean(total), "reward_std": _std(total), "unscored": total.isnan().float().mean().item()}
    for name, part in scores.items():
        metrics[f"reward/{name}"] = _mean(part)
        metrics[f"reward_std/{name}"] = _std(part)
        metrics[f"reward_correlation/{name}"] = correlation(part, total)
    return metrics


def correlation(first: Float[Tensor, " B"], second: Float[Tensor, " B"]) -> float:
    """Pearson's, over the places where both are known; 0 where one of them is constant there."""
    known = ~(first.isnan() | second.isnan())
    a, b = first[known].double(), second[known].double()
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm())).clamp(-1, 1).item()


def _mean(scores: Tensor) -> float:
    known = scores[~scores.isnan()]
    return known.mean().item() if len(known) else math.nan


def _std(scores: Tensor) -> float:
    known = scores[~scores.isnan()]
    return known.std().item() if len(known) > 1 else 0.0
