"""An objective of your own: REINFORCE with the group's mean as the baseline, without a ratio, clip or reference.

sfumato train emoji-dark --objective examples/reinforce.py:Reinforce --objective.scale 2 --run-dir runs/reinforce
"""

from dataclasses import dataclass

from torch import Tensor

from sfumato.objectives import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Log-probabilities weighted by how much better an image is than the mean of its group."""

    scale: float = 1.0
    """Factor of the advantages."""

    needs_reference = False

    def credit(self, batch: Batch) -> Credit:
        groups = batch.rewards.unflatten(0, (-1, batch.group_size))
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        return Credit(weights=self.scale * advantages[:, None])

    def loss(self, log_probs: Tensor, part: Batch, credit: Credit) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -(credit.weights * log_probs).mean()
        return loss, {"log_prob": log_probs.detach().mean()}
