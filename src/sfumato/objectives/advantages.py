"""Advantages of images over others drawn for the same condition. A NaN reward marks an image without a score."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError

Deviation = Literal["group", "batch", "none"]
"""What the differences from the mean of a group are divided by: the standard deviation of the group's rewards, that of
all rewards of the batch, or nothing."""


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, std_floor: float = 1e-4, deviation: Deviation = "group"
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """Return (r - mean) / std within groups of `group_size` consecutive images (Gallici & Sáez de Ocáriz Borde, eq. 1).

    The standard deviation is the unbiased one and at least `std_floor`; TRL divides by std + 1e-4 instead, so its
    advantages are smaller by the factor std / (std + 1e-4), 0.1 % at a standard deviation of 0.1. If all rewards of a
    group are equal, no image is better than another, and the advantages are exactly 0. An image whose reward is NaN is
    excluded from the statistics, and its advantage is exactly 0.

    Args:
        rewards: one per image.
        group_size: number of consecutive images per group.
        std_floor: smallest number that is divided by.
        deviation: standard deviation of what: of the group, of all rewards of the batch (as in TRL's
            `scale_rewards="batch"`), or none (Dr. GRPO, arXiv 2503.20783).

    Returns:
        The advantages, and for each of the N groups whether all its rewards are equal (or fewer than two are known).

    Raises:
        UserError: the group size is below 2 or does not divide the number of images.
    """
    if group_size < 2:
        raise UserError(f"group_size: {group_size} leaves no images to compare; give at least 2")
    if len(rewards) % group_size:
        raise UserError(f"group_size: {group_size} does not divide the {len(rewards)} images; give a divisor")
    groups = rewards.unflatten(0, (-1, group_size))
    scored = ~groups.isnan()
    count = scored.sum(1, keepdim=True)
    lowest = groups.masked_fill(~scored, torch.inf).amin(1)
    highest = groups.masked_fill(~scored, -torch.inf).amax(1)
    equal = highest <= lowest
    mean = groups.nansum(1, keepdim=True) / count.clamp_min(1)
    centered = (groups - mean).masked_fill(~scored, 0.0)
    if deviation == "group":
        std = (centered.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    else:
        known = rewards[~rewards.isnan()]
        std = known.std() if deviation == "batch" and len(known) > 1 else rewards.new_ones(())
    advantages = centered / std.clamp_min(std_floor)
    return advantages.masked_fill(equal[:, None], 0.0).flatten(), equal


def leave_one_out_advantages(
    rewards: Float[Tensor, " B"], group_size: int
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """Return each reward minus the mean of the others in its group (RLOO, arXiv 2402.14740).

    That is G / (G - 1) times the difference from the group's mean, where G counts the images with a score. NaN and
    equal groups are treated as by `group_advantages`.

    Returns:
        The advantages, and for each of the N groups whether all its rewards are equal (or fewer than two are known).

    Raises:
        UserError: the group size is below 2 or does not divide the number of images.
    """
    centered, equal = group_advantages(rewards, group_size, deviation="none")
    count = (~rewards.isnan()).unflatten(0, (-1, group_size)).sum(1, keepdim=True)
    factor = count / (count - 1).clamp_min(1)
    return (centered.unflatten(0, (-1, group_size)) * factor).flatten(), equal


def max_variance_subset(rewards: Float[Tensor, " N"], count: int) -> Int[Tensor, " M"]:
    """Return the positions, ascending, of the `count` rewards with the largest variance (PODS, arXiv 2504.13818,
    algorithm 2): some of the highest and some of the lowest, which is always the best choice.

    NaN rewards are chosen only if there are too few others.

    Args:
        rewards: of the candidates of a group.
        count: number of them to choose, at most N.
    """
    order, known = rewards.argsort(stable=True), int((~rewards.isnan()).sum())  # NaN is last
    if known <= count:
        return order[:count].sort().values
    values = rewards[order[:known]].double()
    values = values - values.mean()  # for the precision of the sums
    sums, squares = (F.pad(x.cumsum(0), (1, 0)) for x in (values, values.square()))
    lowest = torch.arange(count + 1, device=rewards.device)  # how many of the lowest; the others are of the highest
    highest = known - count + lowest
    spread = squares[lowest] + squares[-1] - squares[highest]
    spread = spread - (sums[lowest] + sums[-1] - sums[highest]).square() / count
    best = int(spread.argmax())
    return torch.cat([order[:best], order[known - count + best : known]]).sort().values


def decoupled_advantages(
    rewards: Float[Tensor, "R B"], weights: Float[Tensor, " R"], group_size: int, std_floor: float = 1e-4
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
    """Return advantages from rewards that are normalized separately (GDPO, arXiv 2601.05242, section 3.1).

    Each of the R rewards is normalized within its groups. The weighted sum of the results is divided by its standard
    deviation over the batch. GDPO also subtracts the mean of the sum over the batch. That mean is already 0, so this
    step is omitted, and the advantages of equal groups remain exactly 0. An image with a NaN among its rewards is
    excluded, and its advantage is exactly 0.

    Returns:
        The advantages, and for each of the N groups whether each reward is equal for all of its images.

    Raises:
        UserError: the group size is below 2 or does not divide the number of images.
    """
    unscored = rewards.isnan().any(0)
    parts = [group_advantages(part.masked_fill(unscored, torch.nan), group_size, std_floor) for part in rewards]
    total = sum(weight * advantages for weight, (advantages, _) in zip(weights, parts, strict=True))
    assert isinstance(total, Tensor)
    std = total[~unscored].std() if (~unscored).sum() > 1 else total.new_zeros(())
    return total / std.clamp_min(std_floor), torch.stack([equal for _, equal in parts]).all(0)
