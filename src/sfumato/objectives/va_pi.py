"""VA-pi (Liao et al. 2025, arXiv 2512.19680): tokens are drawn so that they decode to the image they continue."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import check_clip, group_credit
from sfumato.objectives.objective import Credit
from sfumato.objectives.ratios import clipped_surrogate, clipped_tokens
from sfumato.request import Index
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class ReconstructionCredit(Credit):
    """The advantages of drawn reconstructions, and the weights of the true tokens of their images."""

    likelihood: Float[Tensor, "B 1"]
    """weight of the log-probability of each image's tokens; 0 for drawn ones"""

    def __getitem__(self, index: Index) -> "ReconstructionCredit":
        return ReconstructionCredit(weights=self.weights[index], likelihood=self.likelihood[index])


@dataclass(frozen=True, kw_only=True)
class VAPi:
    """VA-pi: each token of an image of a data set is drawn again, given the image's true tokens before it, and the
    result is decoded. GRPO rewards the smallest squared error of the pixels; the likelihood of the true tokens keeps
    the policy on the data. The first image of each group is the true one. Needs --data; rewards are only measured."""

    clip: float = 0.2
    """epsilon: the ratio is clipped to between 1 - epsilon and 1 + epsilon"""
    likelihood_weight: float = 0.1
    """weight of the likelihood of the true tokens"""

    needs_reference = False
    learns_from = "reconstructions"

    def __post_init__(self):
        check_clip(self.clip)
        if not 0 <= self.likelihood_weight < math.inf:
            raise UserError(
                f"objective.likelihood_weight: {self.likelihood_weight} is out of range; the paper's code uses 0.1"
            )

    def credit(self, batch: Batch) -> ReconstructionCredit:
        """Return the advantage of each reconstruction over the others in its group.

        Images without a reward (NaN) have their true tokens. The weights make the loss the mean over reconstructions
        plus the weighted mean over true images.
        """
        true, size = batch.rewards.isnan(), batch.group_size
        credit = group_credit(batch, skip=True)
        weights = credit.weights * size / (size - 1)
        likelihood = torch.where(true, self.likelihood_weight * size, 0.0).to(weights)[:, None]
        taught = (weights != 0)[:, 0] | (likelihood != 0)[:, 0]
        return ReconstructionCredit(weights=weights, likelihood=likelihood, taught=taught, metrics=credit.metrics)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the mean over all tokens of -surrogate - likelihood weight·log-probability."""
        assert isinstance(credit, ReconstructionCredit)
        surrogate = clipped_surrogate(log_probs, part.rollout.log_probs, credit.weights, self.clip)
        ratio = (log_probs.detach() - part.rollout.log_probs).exp()
        clipped = clipped_tokens(ratio, credit.weights, self.clip)
        stats = {"ratio_mean": ratio.mean(), "clip_fraction": clipped.float().mean()}
        return -(surrogate + credit.likelihood * log_probs).mean(), stats
