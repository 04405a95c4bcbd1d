"""Rewards on a device of their own."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.base import WeightedSum
from sfumato.rewards.groups import GroupReward, Wrapped
from sfumato.rewards.sharing import Lent, OncePerBatch


@dataclass(frozen=True)
class Placed(Wrapped):
    """A reward that runs on another device than that of the images; its scores stay there."""

    device: torch.device
    moved: OncePerBatch[Tensor]
    """the images on this device: one copy for all rewards, so that they still share what they compute of it"""
    lent: Lent
    """what rewards get of this copy"""

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        return self.reward(self.there(images), words.to(self.device))

    def there(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images on this device."""
        return self.lent(self.moved(images, lambda: images.to(self.device)))


@dataclass(frozen=True)
class PlacedGroups(Placed):
    """A reward that compares images, on another device than that of the images; so is its state."""

    def features(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Any:
        return self.reward.features(self.there(images), words.to(self.device))

    def scores(self, features: Tensor, words: Words, groups: Int[Tensor, " B"]) -> Any:
        return self.reward.scores(features.to(self.device), words.to(self.device), groups.to(self.device))


def placed(rewards: WeightedSum, device: torch.device) -> WeightedSum:
    """Return the same sum, with rewards that run on this device; the scores are still on the images' device."""
    moved, lent = OncePerBatch[Tensor](), Lent()
    parts = {}
    for name, part in rewards.parts.items():
        kind = PlacedGroups if isinstance(part.reward, GroupReward) else Placed
        parts[name] = replace(part, reward=kind(part.reward, device, moved, lent))
    return replace(rewards, parts=parts)
