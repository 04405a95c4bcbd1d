"""GSPO (Zheng et al. 2025, arXiv 2507.18071): one ratio for a whole image, or for each of its scales."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import check_kl_weight, group_credit, penalized
from sfumato.objectives.objective import Credit
from sfumato.objectives.ratios import clipped_surrogate, clipped_tokens, unit_means
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class GSPO:
    """GSPO: the ratio is the geometric mean of the ratios of all tokens of an image, and is clipped as a whole. With
    `level` unit it is that of each unit: of each scale of a next-scale model."""

    clip_below: float = 3e-4
    """epsilon low: the ratio is clipped from below at 1 - epsilon; means of many tokens vary little"""
    clip_above: float = 4e-4
    """epsilon high: the ratio is clipped from above at 1 + epsilon"""
    level: Literal["image", "unit"] = "image"
    """tokens that share a ratio: those of an image, or of a unit (for next-token models, a unit is one token)"""
    kl_weight: float = 0.0
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage if the KL has weight 0; the gradient is the same"""

    def __post_init__(self):
        check_kl_weight(self.kl_weight)
        if not (0 < self.clip_below < 1 and 0 < self.clip_above < math.inf):
            raise UserError(
                f"objective.clip_below: {self.clip_below:g}, with clip_above {self.clip_above:g}, is out of range; the "
                "paper uses 3e-4 and 4e-4"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss includes the KL."""
        return self.kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image over the others in its group (eq. 6)."""
        return group_credit(batch, skip=self.skip_equal_groups and not self.needs_reference)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return beta·KL minus the mean of the clipped surrogate with these ratios (eq. 5 and 7).

        Units count by their numbers of tokens.
        """
        units = part.rollout.units if self.level == "unit" else (log_probs.shape[1],)
        means = unit_means(log_probs - part.rollout.log_probs, units)
        surrogate = clipped_surrogate(means, torch.zeros_like(means), credit.weights, self.clip_below, self.clip_above)
        ratio = means.detach().exp()
        clipped = clipped_tokens(ratio, credit.weights, self.clip_below, self.clip_above)
        stats = {"ratio_mean": ratio.mean(), "clip_fraction": clipped.float().mean()}
        return penalized(-surrogate, log_probs, part, self.kl_weight, stats)
