"""The protocol of a reward, and the weighted sum of several."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.plugins import describe, is_path, split_name
from sfumato.request import Words
from sfumato.rewards.deadline import Deadline, OverdueError
from sfumato.rewards.groups import GroupReward, groups_of, with_features
from sfumato.rewards.sharing import Lent

LARGEST, LARGEST_WEIGHT = 1e10, 1e6
"""Largest magnitudes of an adjusted score and of a weight. The squares of their products, summed over a batch, are
float32 numbers, so that neither the total nor its statistics can overflow."""
LENT = Lent()
"""The copy of the images that rewards get, so that no reward can change those of the others, or the pictures."""


@runtime_checkable
class Reward(Protocol):
    """Score B images in [0, 1]; the scores are on the images' device. Higher is better; NaN means "no score".

    Any function with this signature is a reward. A list or an array of B numbers, other dtypes and devices, and the
    shape (B, 1) are converted. A reward may write to its images, which are a copy. One that may return NaN can give the
    reason in an attribute `last_failure`.
    """

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words, /) -> Float[Tensor, " B"]: ...


class RewardError(UserError):
    """A reward failed; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One term of a sum of rewards: weight × (scale × score + offset). The score can be quantized to levels first."""

    reward: Reward | GroupReward
    """a function of images, words and groups becomes a `GroupReward`"""
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
        object.__setattr__(self, "reward", with_features(self.reward))
        if self.thresholds and len(self.thresholds) != len(self.levels) - 1:
            raise UserError(
                f"thresholds: {len(self.thresholds)} for {len(self.levels)} levels is not one fewer than the levels; "
                "give one fewer, or none"
            )
        if list(self.thresholds) != sorted(self.thresholds):
            raise UserError(f"thresholds: {self.thresholds} are not in ascending order; sort them")
        if len(self.levels) == 1:
            raise UserError(f"levels: {self.levels} has a single level; give at least two, or none")
        for name in ("weight", "scale", "offset", "levels", "thresholds"):
            for number in np.atleast_1d(getattr(self, name)).tolist():
                if not abs(number) <= torch.finfo(torch.float32).max:  # NaN too
                    raise UserError(f"{name}: {number} is not a finite float32 number; give a smaller number")
        if abs(self.weight) > LARGEST_WEIGHT:
            raise UserError(f"weight: {self.weight:g} is beyond {LARGEST_WEIGHT:g}; give a smaller one, or a scale")

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
    """rewards by name, each with its weight"""
    deadline: Deadline | None = None
    """time limit of every call of a part; None for no limit"""

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], words: Words, groups: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """Return the weighted sum, and the scores of every part with scale and offset but without weight.

        `groups` has equal numbers for images that are compared; by default, those of the same class and caption.

        Raises:
            RewardError: a part raised an exception or took too long, or its scores have the wrong shape or are
                infinite or too large; the message names it.
        """
        return self.finish(self.see(images, words), words, groups)

    def see(self, images: Float[Tensor, "B 3 H W"], words: Words) -> dict[str, Tensor]:
        """Return the scores of every part, or the features of a part that compares images. For a batch that is drawn in
        parts, `join_seen` joins the results for `finish`.

        Raises:
            RewardError: see `__call__`.
        """
        return {name: see(name, part, LENT(images), words, self.deadline) for name, part in self.parts.items()}

    def finish(
        self, seen: Mapping[str, Tensor], words: Words, groups: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """Return the weighted sum and the scores of every part, from what the parts saw of all images.

        Raises:
            RewardError: see `__call__`.
        """
        groups = groups_of(words) if groups is None else groups
        scores = {
            name: compare(name, part, seen[name], words, groups, self.deadline) for name, part in self.parts.items()
        }
        return self.total(scores), scores

    @property
    def compares(self) -> tuple[str, ...]:
        """Names of the parts that compare images, whose scores `finish` computes."""
        return tuple(name for name, part in self.parts.items() if isinstance(part.reward, GroupReward))

    def update(self, seen: Mapping[str, Tensor]) -> None:
        """Update the state of rewards that have one, with the features of a batch of training."""
        for name, reward in self._with_state().items():
            reward.update(seen[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the states of rewards that have one, by name."""
        return {name: reward.state_dict() for name, reward in self._with_state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, reward in self._with_state().items():
            if name in state:
                reward.load_state_dict(state[name])

    def _with_state(self) -> dict[str, Any]:
        return {name: self.parts[name].reward for name in self.compares if hasattr(self.parts[name].reward, "update")}

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
            scores = score(name, Part(reward=self.parts[name].reward), LENT(images), words, self.deadline)
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


def join_seen(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join what a sum of rewards saw of the parts of a batch.

    Raises:
        RewardError: the features of a reward have other shapes in one part than in another.
    """
    joined = {}
    for name in parts[0]:
        shapes = {tuple(part[name].shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise RewardError(
                f"reward {name!r} has features of the shapes {sorted(shapes)}; compare images of one size"
            )
        joined[name] = torch.cat([part[name] for part in parts])
    return joined


def score(name: str, part: Part, images: Tensor, words: Words, deadline: Deadline | None = None) -> Float[Tensor, " B"]:
    """Return the adjusted scores of one part as float32 on the images' device, after checking them. Images of the same
    class and caption are compared.

    Raises:
        RewardError: the reward raised an exception or took too long, or its scores have the wrong shape, are infinite,
            or are too large with scale and offset; the message names it.
    """
    return compare(name, part, see(name, part, images, words, deadline), words, groups_of(words), deadline)


@torch.no_grad()
def see(name: str, part: Part, images: Tensor, words: Words, deadline: Deadline | None = None) -> Tensor:
    """Return the adjusted scores of one part; of one that compares images, the features.

    Raises:
        RewardError: see `score`.
    """
    words = words.to(images.device)
    if not isinstance(part.reward, GroupReward):
        return _checked(name, part, _call(name, deadline, part.reward, images, words), images.device, words)
    features = _call(name, deadline, part.reward.features, images, words)
    if not isinstance(features, Tensor) or features.shape[:1] != (len(images),):
        raise RewardError(
            f"reward {name!r} returned {_kind(features)} as features of {len(images)} images; "
            f"return a tensor ({len(images)}, ...)"
        )
    return features.detach().to(images.device)


@torch.no_grad()
def compare(
    name: str, part: Part, seen: Tensor, words: Words, groups: Int[Tensor, " B"], deadline: Deadline | None = None
) -> Float[Tensor, " B"]:
    """Return the adjusted scores of one part from what it saw of all images.

    Raises:
        RewardError: see `score`.
    """
    if not isinstance(part.reward, GroupReward):
        return seen
    words = words.to(seen.device)
    scores = _call(name, deadline, part.reward.scores, seen, words, groups.to(seen.device))
    return _checked(name, part, scores, seen.device, words)


def _call(name: str, deadline: Deadline | None, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments) if deadline is None else deadline.call(function, *arguments)
    except OverdueError as error:
        assert deadline is not None
        raise RewardError(
            f"reward {name!r} did not return within {deadline.seconds:g} s; fix it, or raise reward_timeout"
        ) from error
    except Exception as error:  # user code can raise anything; the cause is kept
        raise RewardError(f"reward {name!r} failed: {describe(error)}") from error


def _checked(name: str, part: Part, scores: Any, device: torch.device, words: Words) -> Float[Tensor, " B"]:
    """Return what a reward returned as adjusted scores, after checking it."""
    count = len(words)
    exact = _as_tensor(scores, count)
    if exact is None:
        raise RewardError(f"reward {name!r} returned {_kind(scores)} for {count} images; return a tensor ({count},)")
    single = exact.to(device, torch.float32)
    result = part.adjust(single)
    too_large = single.isinf() | (result.abs() > LARGEST)
    if too_large.any():  # the only reading from a GPU
        first = int(too_large.nonzero()[0, 0])
        value = f"{exact[first].item():g}"
        if single[first].isfinite():
            value += f", with scale and offset {result[first].item():g},"
        raise RewardError(
            f"reward {name!r} returned {value} for {int(too_large.sum())} of {count} images "
            f"(first: {words.names[first]!r}); return numbers up to {LARGEST:g} after scaling, or NaN for no score"
        )
    return result


def _kind(result: Any) -> str:
    """Return the type of a reward's result, with its shape, for messages."""
    shape = f" {tuple(result.shape)}" if isinstance(result, Tensor | np.ndarray) else ""
    return f"a {type(result).__name__}{shape}"


def _as_tensor(scores: Any, count: int) -> Tensor | None:
    """Return what a reward returned as a tensor of `count` real numbers; None if it is something else."""
    if not isinstance(scores, Tensor):
        if not isinstance(scores, list | tuple) and not hasattr(scores, "__array__"):
            return None
        if isinstance(scores, list | tuple):
            scores = [score.detach().cpu() if isinstance(score, Tensor) else score for score in scores]
        try:
            array = np.asarray(scores)
            if array.dtype.kind not in "biufO":  # text and complex numbers are not scores
                return None
            scores = torch.from_numpy(array.astype(np.float64))  # None becomes NaN
        except (TypeError, ValueError, OverflowError):
            return None
    if scores.shape == (count, 1):
        scores = scores.squeeze(1)
    return None if scores.shape != (count,) or scores.is_complex() else scores.detach()


def statistics(total: Float[Tensor, " B"], scores: Mapping[str, Float[Tensor, " B"]]) -> dict[str, float]:
    """Return the mean and standard deviation of the total and of every part over the images that have a score, each
    part's correlation with the total (0 if one of the two is constant), and the share of images without a total.

    The names are those of `short_names`.
    """
    short = short_names(scores)
    metrics = {"reward_mean": _mean(total), "reward_std": _std(total), "unscored": total.isnan().float().mean().item()}
    for name, part in scores.items():
        metrics[f"reward/{short[name]}"] = _mean(part)
        metrics[f"reward_std/{short[name]}"] = _std(part)
        metrics[f"reward_correlation/{short[name]}"] = correlation(part, total)
    return metrics


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a short name for each reward, for metrics: own code goes by the name of its function or class.

    If two would be equal, the options, the file's name, or all of the path are added. Other names stay as they are.
    """
    candidates = {name: _candidates(name) for name in names}
    taken = Counter(short for shorts in candidates.values() for short in dict.fromkeys(shorts))
    return {name: next((s for s in shorts if taken[s] == 1), name) for name, shorts in candidates.items()}


def _candidates(name: str) -> list[str]:
    base, query = split_name(name)
    if not is_path(base):
        return [name]
    path, _, function = base.rpartition(":")
    options = f"?{query}" if query else ""
    file = f"{Path(path).name}:{function}"
    return [function, function + options, file, file + options, name]


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
