"""Best-of-N: likelihood training on the best image of each group (RAFT, Dong et al. 2023, arXiv 2304.06767)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.objectives.advantages import group_advantages
from sfumato.objectives.grpo import check_kl_weight, credit_of, penalized
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Best-of-N: of each group, the image with the highest reward becomes more likely, and no other image teaches
    anything. Each best image counts as a whole group, so the learning rate does not depend on the group's size."""

    kl_weight: float = 0.0
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""

    def __post_init__(self):
        check_kl_weight(self.kl_weight)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss includes the KL."""
        return self.kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return the group's size for the best image of each group, and 0 for all others."""
        best, _, equal = extremes(batch.rewards, batch.group_size)
        weights = torch.zeros_like(batch.rewards)
        weights[best[~equal]] = batch.group_size
        return credit_of(weights, equal, skip=not self.needs_reference)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return beta·KL minus the mean over all tokens of weight·log-probability.

        The weights make it the mean over the tokens of the best images, if every group has one.
        """
        return penalized(-credit.weights * log_probs, log_probs, part, self.kl_weight, {})


def extremes(
    rewards: Float[Tensor, " B"], group_size: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return the positions of the image with the highest and of that with the lowest reward in each of N groups.

    The first of several equal ones is taken; images without a score (NaN) are left out.

    Returns:
        The best, the worst, and for each group whether all its rewards are equal (or fewer than two are known); its
        best and worst then mean nothing.

    Raises:
        UserError: the group size is below 2 or does not divide the number of images.
    """
    _, equal = group_advantages(rewards, group_size)
    groups = rewards.unflatten(0, (-1, group_size))
    first = group_size * torch.arange(len(groups), device=rewards.device)
    best = groups.masked_fill(groups.isnan(), -torch.inf).argmax(1)
    worst = groups.masked_fill(groups.isnan(), torch.inf).argmin(1)
    return first + best, first + worst, equal
