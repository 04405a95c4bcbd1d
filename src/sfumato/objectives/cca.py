"""Condition contrastive alignment (Chen et al. 2024, arXiv 2410.09347): the weights learn what guidance does."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.dpo import check_beta, log_ratios
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class CCA:
    """CCA: images of a data set become more likely under their own condition and less likely under that of another
    image, relative to the reference. The result draws without guidance about as the reference does with it. Needs
    --data; rewards are only measured."""

    beta: float = 0.02
    """weight of the log-ratio to the reference"""
    mismatch_weight: float = 50.0
    """lambda: weight of images under conditions that are not theirs; larger is like stronger guidance. The paper has
    50 to 1000, more for larger models"""

    needs_reference = True
    learns_from = "conditions"

    def __post_init__(self):
        check_beta(self.beta)
        if not 0 < self.mismatch_weight < math.inf:
            raise UserError(f"objective.mismatch_weight: {self.mismatch_weight} is not positive; 50 to 1000 are usual")

    def credit(self, batch: Batch) -> Credit:
        """Return a positive weight for images under their own condition (reward 1), and a negative one for the others
        (reward 0).

        As in the authors' code, an image that meets its own condition by chance counts like any other under its own,
        and the loss is divided by lambda if that is above 1.
        """
        own, scale = batch.rewards > 0.5, 2 / max(self.mismatch_weight, 1.0)  # 2: each image is in the batch twice
        weights = torch.where(own, scale, -scale * self.mismatch_weight)
        return Credit(weights=weights.to(batch.rewards)[:, None])

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the mean over all images of -|weight|·log sigmoid(±beta·log-ratio), where the sign is that
        of the weight, and the log-ratio to the reference is the sum over the tokens."""
        weights = credit.weights[:, 0]
        margin = weights.sign() * log_ratios(log_probs, part)
        loss = -weights.abs() * F.logsigmoid(self.beta * margin)
        return loss.mean(), {"margin": margin.detach().mean(), "pairs_in_order": (margin.detach() > 0).float().mean()}
