"""Advantages of images over others drawn for the same condition. A reward of NaN is no score."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import UserError


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, std_floor: float = 1e-4
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """(r - mean) / std within each group of `group_size` consecutive images (Gallici & Sáez de Ocáriz Borde, eq. 1).

    The standard deviation is the unbiased one, floored at `std_floor`. A group whose rewards are all equal says
    nothing about which image is better: its advantages are exactly 0. An image whose reward is NaN takes no part in
    the statistics of its group, and its advantage is exactly 0.

    Returns:
        The advantages, and for each of the N groups whether its rewards are all equal (or fewer than two are known).

    Raises:
        UserError: the group size is below 2 or does not divide the number of images.
    """
    if group_size < 2:
        raise UserError(f"group_size: {group_size} leaves nothing to compare with; give at least 2")
    if len(rewards) % group_size:
        raise UserError(f"group_size: {group_size} does not divide the {len(rewards)} images; give a divisor")
    groups = rewards.unflatten(0, (-1, group_size))
    scored = ~groups.isnan()
    count = scored.sum(1, keepdim=True)
    lowest = groups.masked_fill(~scored, torch.inf).amin(1)
    highest = groups.masked_fill(~scored, -torch.inf).amax(1)
    equal = highest <= lowest
    mean = groups.nansum(1, keepdim=True) / count.clamp_min(1)
    centred = (groups - mean).masked_fill(~scored, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    advantages = centred / std.clamp_min(std_floor)
    return advantages.masked_fill(equal[:, None], 0.0).flatten(), equal


def decoupled_advantages(
    rewards: Float[Tensor, "R B"], weights: Float[Tensor, " R"], group_size: int, std_floor: float = 1e-4
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """Each of R rewards is normalised in its groups, then they are summed with their weights, then the sum is divided
    by its standard deviation over the batch (GDPO, arXiv 2601.05242, section 3.1).

    The sum's mean over the batch is 0 as it is, so that GDPO's subtraction of it is left out: equal groups stay at
    exactly 0. An image with any reward of NaN takes no part, and its advantage is exactly 0.

    Returns:
        The advantages, and for each of the N groups whether every one of its rewards is equal throughout.

    Raises:
        UserError: as of `group_advantages`.
    """
    unscored = rewards.isnan().any(0)
    parts = [group_advantages(part.masked_fill(unscored, torch.nan), group_size, std_floor) for part in rewards]
    total = sum(weight * advantages for weight, (advantages, _) in zip(weights, parts, strict=True))
    assert isinstance(total, Tensor)
    std = total[~unscored].std() if (~unscored).sum() > 1 else total.new_zeros(())
    return total / std.clamp_min(std_floor), torch.stack([equal for _, equal in parts]).all(0)
