"""Rewards: functions of images in [0, 1] and conditions; higher is better."""

from collections.abc import Mapping

from sfumato.rewards import pixels
from sfumato.rewards.base import Reward, RewardError, WeightedSum, combine

REWARDS: dict[str, Reward] = {
    function.__name__: function
    for function in (pixels.brightness, pixels.darkness, pixels.bright, pixels.dark, pixels.colorfulness)
}
"""Rewards by name."""


def build_reward(weights: Mapping[str, float]) -> WeightedSum:
    """The weighted sum of rewards given by name or as `path/to/file.py:function`."""
    return combine(weights, REWARDS)


__all__ = ["REWARDS", "Reward", "RewardError", "WeightedSum", "build_reward"]
