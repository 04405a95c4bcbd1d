"""GRPO on trees: images that share their first units (Sun et al. 2026, arXiv 2601.02256, value as middle return)."""

from dataclasses import dataclass

import torch

from sfumato.errors import UserError
from sfumato.objectives.advantages import group_advantages
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch, Fork


@dataclass(frozen=True, kw_only=True)
class TreeGRPO(GRPO):
    """GRPO whose images share beginnings: the first scales (or tokens of a next-token model) are drawn once for several
    continuations. The mean reward of its continuations is the value of a beginning. The tokens of beginnings learn from
    the comparison of their values, and the other tokens from that of the continuations of the same beginning."""

    fork_unit: int = 5
    """number of scales, or of tokens of a next-token model, that continuations share"""
    continuations: int = 2
    """number of images for each beginning; at least 2, and a divisor of half the group size"""

    def __post_init__(self):
        super().__post_init__()
        if self.fork_unit < 1:
            raise UserError(f"objective.fork_unit: {self.fork_unit} is too small; give at least 1")
        if self.continuations < 2:
            raise UserError(f"objective.continuations: {self.continuations} leaves none to compare; give at least 2")

    @property
    def fork(self) -> Fork:
        """How the images are drawn."""
        return Fork(unit=self.fork_unit, continuations=self.continuations)

    def credit(self, batch: Batch) -> Credit:
        """Return an advantage for the tokens before the fork, and another for those after it, for each image.

        Images without a score are left out of the values, and have the advantage 0.
        """
        rewards, count, size = batch.rewards, self.continuations, batch.group_size
        values = rewards.unflatten(0, (-1, count)).nanmean(1)
        before, _ = group_advantages(values, size // count, deviation=self.deviation)
        after, equal = group_advantages(rewards, count, deviation=self.deviation)
        units = batch.rollout.units
        shared = torch.arange(sum(units), device=rewards.device) < sum(units[: self.fork_unit])
        weights = torch.where(shared, before.repeat_interleave(count)[:, None], after[:, None])
        weights = weights.masked_fill(rewards.isnan()[:, None], 0.0)
        _, equal_groups = group_advantages(rewards, size)
        return Credit(
            weights=weights,
            taught=(weights != 0).any(1) if self.skip_equal_groups and not self.needs_reference else None,
            metrics={
                "equal_groups": equal_groups.float().mean().item(),
                "equal_continuations": equal.float().mean().item(),
            },
        )
