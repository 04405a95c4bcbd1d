"""GDPO (arXiv 2601.05242): rewards are normalized separately, then added."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.objectives.advantages import decoupled_advantages
from sfumato.objectives.grpo import check_clip, check_kl_weight, clipped_loss, credit_of
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class GDPO:
    """GDPO: normalizes each reward within each group, then adds them up; the loss is the same as in GRPO."""

    clip: float = 0.2
    """epsilon: the ratio is clipped to between 1 - epsilon and 1 + epsilon"""
    kl_weight: float = 0.2
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage if the KL has weight 0; the gradient is the same"""

    def __post_init__(self):
        check_clip(self.clip)
        check_kl_weight(self.kl_weight)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss includes the KL."""
        return self.kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return advantages independent of reward scales (section 3.1); rewards of weight 0 are only logged."""
        counted = [name for name, weight in batch.weights.items() if weight]
        weights = batch.rewards.new_tensor([batch.weights[name] for name in counted])
        scores = torch.stack([batch.scores[name] for name in counted])
        advantages, equal = decoupled_advantages(scores, weights, batch.group_size)
        return credit_of(advantages, equal, skip=self.skip_equal_groups and not self.needs_reference)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of GRPO: the mean over all tokens of beta·KL - surrogate."""
        return clipped_loss(log_probs, part, credit, self.clip, self.kl_weight)
