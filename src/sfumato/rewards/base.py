"""The protocol of a reward, and the weighted sum of several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.deadline import Deadline, OverdueError


@runtime_checkable
class Reward(Protocol):
    """Score B images in [0, 1]; the scores are on the images' device. Higher is better; NaN means "no score".

    Any function with this signature is a reward. A reward that may return NaN can give the reason in an attribute
    `last_failure`.
    """

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words, /) -> Float[Tensor, " B"]: ...


class RewardError(UserError):
    """A reward failed; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One term of a sum of rewards: weight × (scale × score + offset). The score can be quantized to levels first."""

    reward: Reward
    weight: float = 1.0
    """weight in the sum; with 0 the reward is only logged"""
    scale: float = 1.0
    """factor that multiplies the score"""
    offset: float = 0.0
    """number added to the scaled score"""
    levels: tuple[float, ...] = ()
    """values that the score is quantized to: the first below the first threshold, the second from there on, ..."""
    thresholds: tuple[float, ...] = ()
    """ascending scores at which the level changes, one fewer than the levels; measured on samples of the base model if
    not given"""

    def __post_init__(self):
        if self.thresholds and len(self.thresholds) != len(self.levels) - 1:
            raise UserError(
                f"thresholds: {len(self.thresholds)} for {len(self.levels)} levels is not one fewer than the levels; "
                "give one fewer, or none"
            )
        if list(self.thresholds) != sorted(self.thresholds):
            raise UserError(f"thresholds: {self.thresholds} are not in ascending order; sort them")
        if len(self.levels) == 1:
            raise UserError(f"levels: {self.levels} has a single level; give at least two, or none")
        for name in ("weight", "scale", "offset"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name}: {getattr(self, name)} is not finite; give a finite number")

    def adjust(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Apply levels, scale and offset to raw scores; NaN stays NaN. Levels without thresholds are not applied."""
        if self.thresholds:
            steps = torch.bucketize(scores, scores.new_tensor(self.thresholds), right=True)
            levels = scores.new_tensor(self.levels)[steps.clamp_max(len(self.thresholds))]
            scores = torch.where(scores.isnan(), torch.nan, levels)
        return self.scale * scores + self.offset


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of rewards by name, each with its weight, scale and offset."""

    parts: Mapping[str, Part]
    deadline: Deadline | None = None
    """time limit of every call of a part; None for no limit"""

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """Return the weighted sum, and the scores of every part with scale and offset but without weight.

        Raises:
            RewardError: a part raised an exception or took too long, or its scores have the wrong shape or are
                infinite; the message names it.
        """
        scores = {name: part.adjust(self._score(name, images, words)) for name, part in self.parts.items()}
        return self.total(scores), scores

    def total(self, scores: Mapping[str, Float[Tensor, " B"]]) -> Float[Tensor, " B"]:
        """Return the weighted sum of the parts' scores; NaN where a part with a nonzero weight has no score."""
        counted = [part.weight * scores[name] for name, part in self.parts.items() if part.weight]
        return torch.stack(counted).sum(0) if counted else torch.zeros_like(next(iter(scores.values())))

    def without_thresholds(self) -> tuple[str, ...]:
        """Return the names of the parts whose thresholds have yet to be measured."""
        return tuple(name for name, part in self.parts.items() if part.levels and not part.thresholds)

    def require_thresholds(self) -> "WeightedSum":
        """Return this sum after checking that it needs no measured thresholds, for use without images to measure on.

        Raises:
            UserError: a part has levels without thresholds.
        """
        for name in self.without_thresholds():
            raise UserError(
                f"reward: the levels of {name} have no thresholds; add them, as in levels=0,1&thresholds=0.3"
            )
        return self

    def with_thresholds(self, thresholds: Mapping[str, Sequence[float]]) -> "WeightedSum":
        """Return the same sum with these thresholds for the named parts."""
        measured = {name: replace(self.parts[name], thresholds=tuple(values)) for name, values in thresholds.items()}
        return replace(self, parts={**self.parts, **measured})

    def measure_thresholds(self, images: Float[Tensor, "B 3 H W"], words: Words) -> dict[str, tuple[float, ...]]:
        """Return thresholds that divide the scores of these images equally among the levels (three levels: terciles).

        Raises:
            RewardError: a part fails, or scores none of the images.
        """
        thresholds = {}
        for name in self.without_thresholds():
            scores = self._score(name, images, words)
            known = scores[~scores.isnan()]
            if not len(known):
                raise RewardError(f"reward {name!r} scores none of {len(images)} images; give its thresholds")
            shares = torch.linspace(0, 1, len(self.parts[name].levels) + 1)[1:-1]
            thresholds[name] = tuple(known.quantile(shares.to(known)).tolist())
        return thresholds

    def check_scored(self, scores: Mapping[str, Float[Tensor, " B"]], max_unscored: float) -> None:
        """Check that every part has a score for enough images; at most a share `max_unscored` may lack one.

        Raises:
            RewardError: a part lacks more scores; the message names the part, and its reason if it gives one.
        """
        for name, part in self.parts.items():
            unscored = int(scores[name].isnan().sum())
            if unscored > max_unscored * len(scores[name]):
                reason = getattr(part.reward, "last_failure", "")
                raise RewardError(
                    f"reward {name!r} has no score for {unscored} of {len(scores[name])} images, more than "
                    f"max_unscored {max_unscored}{f' ({reason})' if reason else ''}; fix it, or raise max_unscored"
                )

    def _score(self, name: str, images: Tensor, words: Words) -> Float[Tensor, " B"]:
        return score(name, self.parts[name].reward, images, words, self.deadline)


@torch.no_grad()
def score(
    name: str, reward: Reward, images: Tensor, words: Words, deadline: Deadline | None = None
) -> Float[Tensor, " B"]:
    """Return the scores of one reward as float32 on the images' device, after checking them.

    Raises:
        RewardError: the reward raised an exception or took too long, or its scores have the wrong shape or are
            infinite; the message names it.
    """
    words = words.to(images.device)
    try:
        scores = reward(images, words) if deadline is None else deadline.call(reward, images, words)
    except OverdueError as error:
        assert deadline is not None
        raise RewardError(
            f"reward {name!r} did not return within {deadline.seconds:g} s; fix it, or raise reward_timeout"
        ) from error
    except Exception as error:  # user code can raise anything; the cause is kept
        raise RewardError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        returned = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {name!r} returned {returned} for {len(images)} images; return a tensor ({len(images)},)"
        )
    infinite = scores.isinf()
    if infinite.any():
        first = int(infinite.nonzero()[0, 0])
        raise RewardError(
            f"reward {name!r} returned {scores[first].item()} for {int(infinite.sum())} of {len(images)} images "
            f"(first: {words.names[first]!r}); return finite scores, or NaN for no score"
        )
    return scores.to(images.device, torch.float32)


def statistics(total: Float[Tensor, " B"], scores: Mapping[str, Float[Tensor, " B"]]) -> dict[str, float]:
    """Return the mean and standard deviation of the total and of every part over the images that have a score, each
    part's correlation with the total (0 if one of the two is constant), and the share of images without a total."""
    metrics = {"reward_mean": _mean(total), "reward_std": _std(total), "unscored": total.isnan().float().mean().item()}
    for name, part in scores.items():
        metrics[f"reward/{name}"] = _mean(part)
        metrics[f"reward_std/{name}"] = _std(part)
        metrics[f"reward_correlation/{name}"] = correlation(part, total)
    return metrics


def correlation(first: Float[Tensor, " B"], second: Float[Tensor, " B"]) -> float:
    """Return Pearson's correlation over the positions where both scores are known; 0 if one is constant there."""
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
