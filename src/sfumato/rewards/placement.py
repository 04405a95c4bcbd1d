"""Rewards on a device of their own."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.base import Reward, WeightedSum
from sfumato.rewards.sharing import Lent, OncePerBatch


@dataclass(frozen=True)
class Placed:
    """A reward that runs on another device than that of the images; its scores stay there."""

    reward: Reward
    device: torch.device
    moved: OncePerBatch[Tensor]
    """the images on this device: one copy for all rewards, so that they still share what they compute of it"""
    lent: Lent
    """what rewards get of this copy"""

    @property
    def last_failure(self) -> str:
        """The reason that an image has no score."""
        return getattr(self.reward, "last_failure", "")

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        there = self.lent(self.moved(images, lambda: images.to(self.device)))
        return self.reward(there, words.to(self.device))


def placed(rewards: WeightedSum, device: torch.device) -> WeightedSum:
    """Return the same sum, with rewards that run on this device; the scores are still on the images' device."""
    moved, lent = OncePerBatch[Tensor](), Lent()
    parts = {
        name: replace(part, reward=Placed(part.reward, device, moved, lent)) for name, part in rewards.parts.items()
    }
    return replace(rewards, parts=parts)
