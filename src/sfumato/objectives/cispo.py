"""CISPO (MiniMax 2025, arXiv 2506.13585): ratios are clipped as weights, so that no token loses its gradient."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import check_kl_weight, group_credit, penalized
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class CISPO:
    """CISPO: REINFORCE weighted by a ratio that has no gradient and an upper bound. Tokens beyond the bound still
    learn, which GRPO's clip prevents."""

    largest_ratio: float = 5.0
    """upper bound of the ratio"""
    kl_weight: float = 0.0
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage if the KL has weight 0; the gradient is the same"""

    def __post_init__(self):
        check_kl_weight(self.kl_weight)
        if not self.largest_ratio >= 1:
            raise UserError(f"objective.largest_ratio: {self.largest_ratio} is below 1; 5 is usual")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss includes the KL."""
        return self.kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image over the others in its group."""
        return group_credit(batch, skip=self.skip_equal_groups and not self.needs_reference)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return beta·KL minus the mean over all tokens of sg(min(ratio, bound))·A·log-probability (eq. 4 and 5)."""
        ratio = (log_probs.detach() - part.rollout.log_probs).exp()
        loss = -ratio.clamp_max(self.largest_ratio) * credit.weights * log_probs
        clipped = (ratio > self.largest_ratio) & (credit.weights != 0)
        stats = {"ratio_mean": ratio.mean(), "clip_fraction": clipped.float().mean()}
        return penalized(loss, log_probs, part, self.kl_weight, stats)
