"""Advantages of images over others drawn for the same condition."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, std_floor: float = 1e-4
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """(r - mean) / std within each group of `group_size` consecutive images (Gallici & Sáez de Ocáriz Borde, eq. 1).

    The standard deviation is the unbiased one, floored at `std_floor`. A group whose rewards are all equal says
    nothing about which image is better: its advantages are exactly 0.

    Returns:
        The advantages, and for each of the N groups whether its rewards are all equal.
    """
    if group_size < 2:
        raise ValueError(f"group_size: {group_size} leaves nothing to compare with; give at least 2")
    if len(rewards) % group_size:
        raise ValueError(f"group_size: {group_size} does not divide the {len(rewards)} images; give a divisor")
    groups = rewards.unflatten(0, (-1, group_size))
    equal = (groups == groups[:, :1]).all(1)
    centred = groups - groups.mean(1, keepdim=True)
    advantages = centred / groups.std(1, keepdim=True).clamp_min(std_floor)
    return torch.where(equal[:, None], 0.0, advantages).flatten(), equal
