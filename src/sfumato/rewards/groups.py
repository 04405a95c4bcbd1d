"""Rewards that compare images with each other: with those of their group, or with the whole batch.

The images of a batch are drawn part by part, on several processes, and a part may hold pieces of groups. Such a reward
therefore has two stages: `features` of the images of a part, and `scores` of all images at once.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.request import Words


@runtime_checkable
class GroupReward(Protocol):
    """Score B images by comparing them. A class needs only `scores`; its features are then the images themselves.

    With several processes, the main process calls `scores` for all.

    A reward with state also has `update(features)`, which is called with the features of each batch of training after
    it is scored, and never with those of pictures and measurements; and `state_dict()` and `load_state_dict(state)`,
    whose tensors, numbers and strings are in every checkpoint. Only `update` may change the state, and it must leave
    the tensors that `state_dict` has returned as they are.
    """

    def features(self, images: Float[Tensor, "B 3 H W"], words: Words, /) -> Float[Tensor, "B ..."]:
        """Return what the comparison needs of images in [0, 1]. All processes exchange it, so it should be small."""
        ...

    def scores(
        self, features: Float[Tensor, "B ..."], words: Words, groups: Int[Tensor, " B"], /
    ) -> Float[Tensor, " B"]:
        """Return the scores of all images; `groups` has equal numbers for images of one group. NaN means "no score"."""
        ...


PASSED_ON = ("last_failure", "update", "state_dict", "load_state_dict")
"""Optional attributes of rewards."""


@dataclass(frozen=True)
class Wrapped:
    """A reward around another, with the optional attributes of that one."""

    reward: Any

    def __getattr__(self, name: str) -> Any:
        if name in PASSED_ON:
            return getattr(self.reward, name)
        raise AttributeError(name)


@dataclass(frozen=True)
class Compared(Wrapped):
    """A user's reward that compares images; they are its features."""

    compare: Callable[[Tensor, Words, Tensor], Any]
    """returns scores of images, words and groups"""

    def features(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, "B 3 H W"]:
        return images.clone()  # other rewards may write to these

    def scores(self, features: Float[Tensor, "B 3 H W"], words: Words, groups: Int[Tensor, " B"]) -> Any:
        return self.compare(features, words, groups)


def with_features(reward: Any) -> Any:
    """Return a user's reward as a `GroupReward` if it compares images: if it has a method `scores`, or is a function of
    images, words and `groups`. Other rewards are returned as they are."""
    if isinstance(reward, GroupReward):
        return reward
    if callable(getattr(reward, "scores", None)):
        return Compared(reward, reward.scores)
    try:
        parameters = list(inspect.signature(reward).parameters)
    except (TypeError, ValueError):  # not a function, or one without a signature
        return reward
    return Compared(reward, reward) if parameters[2:3] == ["groups"] else reward


def groups_of(words: Words) -> Int[Tensor, " B"]:
    """Return the groups of images whose groups are unknown: images of the same class and caption are compared."""
    asked = list(zip(words.labels.tolist(), words.names, words.captions, strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(asked))}
    return torch.tensor([numbers[key] for key in asked], dtype=torch.long)
