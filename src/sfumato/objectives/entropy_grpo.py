"""GRPO with a bonus for entropy, as in A3C (Mnih et al. 2016, arXiv 1602.01783) and PPO."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO, group_credit
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class EntropyGRPO(GRPO):
    """GRPO that also maximizes the entropy of the distribution of each token, so that images stay diverse. The entropy
    is exact, not an estimate from the drawn tokens, and comes from the pass that computes the log-probabilities."""

    entropy_weight: float = 0.001
    """weight of the mean entropy of a token (nats) in the loss; a negative one lowers the entropy"""

    needs_entropy = True

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.entropy_weight):
            raise UserError(f"objective.entropy_weight: {self.entropy_weight} is not finite; 0.001 is a mild bonus")

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image over the others in its group. No image is skipped: the bonus holds for
        those without an advantage too."""
        return group_credit(batch, self.deviation, skip=False)

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride] (the engine passes the entropy)
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit, entropy: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of GRPO minus the weighted mean of the entropy (nats) over all tokens."""
        loss, stats = super().loss(log_probs, part, credit)
        return loss - self.entropy_weight * entropy.mean(), stats
