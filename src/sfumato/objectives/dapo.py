"""DAPO (Yu et al. 2025, arXiv 2503.14476): a wider upper clip, and no KL."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import check_clip, clipped_loss, group_credit
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class DAPO:
    """DAPO: the ratio may rise further than it may fall, so that unlikely tokens can become likely; no KL. Its mean
    over all tokens is that of GRPO here, since all images have the same number of tokens. Dynamic sampling is
    `--redraws`."""

    clip: float = 0.2
    """epsilon low: the ratio is clipped from below at 1 - epsilon"""
    clip_high: float = 0.28
    """epsilon high: the ratio is clipped from above at 1 + epsilon"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage; the gradient is the same"""

    needs_reference = False

    def __post_init__(self):
        check_clip(self.clip)
        if not 0 < self.clip_high < math.inf:
            raise UserError(f"objective.clip_high: {self.clip_high} is not positive; DAPO uses 0.28")

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image over the others in its group (eq. 9)."""
        return group_credit(batch, skip=self.skip_equal_groups)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return minus the mean over all tokens of the surrogate with two bounds (eq. 8)."""
        return clipped_loss(log_probs, part, credit, self.clip, 0.0, clip_high=self.clip_high)
