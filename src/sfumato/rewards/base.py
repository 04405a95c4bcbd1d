"""The protocol of a reward, and how rewards are found and combined."""

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.rollout import Conditions


@runtime_checkable
class Reward(Protocol):
    """Scores of images in [0, 1]; higher is better. Any function of this form is a reward."""

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions, /) -> Float[Tensor, " B"]: ...


class RewardError(ValueError):
    """A reward that failed, by name."""


@dataclass(frozen=True)
class WeightedSum:
    """Rewards by name, each with a weight."""

    parts: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], conditions: Conditions
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """The weighted sum, and every part's own scores.

        Raises:
            RewardError: a part raised, or its scores have the wrong shape or are not finite; the message names it.
        """
        scores = {name: score(name, reward, images, conditions) for name, reward in self.parts.items()}
        total = torch.stack([self.weights[name] * s for name, s in scores.items()]).sum(0)
        return total, scores


def score(name: str, reward: Reward, images: Tensor, conditions: Conditions) -> Float[Tensor, " B"]:
    """One reward's scores as float32, checked."""
    try:
        scores = reward(images, conditions)
    except Exception as error:  # a user's code may fail in any way; the cause is kept
        raise RewardError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        found = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise RewardError(
            f"reward {name!r} returned {found} for {len(images)} images; return a tensor ({len(images)},)"
        )
    bad = ~scores.isfinite()
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise RewardError(
            f"reward {name!r} returned {scores[first].item()} for {int(bad.sum())} of {len(images)} images "
            f"(first: {conditions.names[first]!r}); return finite scores"
        )
    return scores.to(images.device, torch.float32)


def find_reward(name: str, known: Mapping[str, Reward]) -> Reward:
    """A reward by name, or a user's function as `path/to/file.py:function`.

    Raises:
        ValueError: there is none.
    """
    if name in known:
        return known[name]
    file, separator, function = name.rpartition(":")
    if not separator or not file.endswith(".py"):
        raise ValueError(f"reward: there is no {name!r}; give one of {', '.join(known)}, or path/to/file.py:function")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"reward: {path} is not a file; give path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code may fail in any way; the cause is kept
        raise ValueError(f"reward: {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        functions = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        raise ValueError(f"reward: {path} has no function {function!r}; it has {', '.join(functions) or 'none'}")
    return found  # pyright: ignore[reportReturnType]


def combine(weights: Mapping[str, float], known: Mapping[str, Reward]) -> WeightedSum:
    """The weighted sum of rewards given by name or by file."""
    if not weights:
        raise ValueError("reward: none is given; give at least one, such as brightness=1")
    return WeightedSum({name: find_reward(name, known) for name in weights}, dict(weights))
