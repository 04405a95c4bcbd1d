"""RLOO (Ahmadian et al. 2024, arXiv 2402.14740): REINFORCE whose baseline is the mean of the other images."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.objectives.advantages import leave_one_out_advantages
from sfumato.objectives.divergences import k1_divergence
from sfumato.objectives.grpo import check_kl_weight, credit_of
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class RLOO:
    """RLOO: each image is compared with the mean of the others of its group; the KL is part of the reward. There is no
    ratio, so one update per step (--minibatch-size of all images) is exact, and more are approximate."""

    kl_weight: float = 0.05
    """beta: weight of the KL in the reward: the mean over an image's tokens of log-probability minus that of the
    reference, the model before training; at 0, no reference is kept in memory"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage; the gradient is the same"""

    def __post_init__(self):
        check_kl_weight(self.kl_weight)

    @property
    def needs_reference(self) -> bool:
        """Whether the reward includes the KL."""
        return self.kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return each reward minus the mean of the others in its group, with the KL in the reward."""
        rewards, metrics = batch.rewards, {}
        if batch.reference_log_probs is not None:
            kl = k1_divergence(batch.rollout.log_probs, batch.reference_log_probs).mean(1)
            rewards, metrics = rewards - self.kl_weight * kl, {"kl": kl.mean().item()}
        advantages, equal = leave_one_out_advantages(rewards, batch.group_size)
        credit = credit_of(advantages, equal, skip=self.skip_equal_groups)
        return Credit(weights=credit.weights, taught=credit.taught, metrics={**credit.metrics, **metrics})

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return minus the mean over all tokens of A·log-probability."""
        ratio = (log_probs.detach() - part.rollout.log_probs).exp()
        return -(credit.weights * log_probs).mean(), {"ratio_mean": ratio.mean()}
