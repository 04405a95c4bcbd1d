"""STAGE's weights of tokens (Ma et al. 2025, arXiv 2509.25027): what a group has in common teaches little."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.objectives.similarity import agreement
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class STAGE(GRPO):
    """STAGE: a token that images with the opposite advantage have too gets a smaller advantage, because the group would
    push it both ways, and a larger KL. The authors compare the tokenizer's embeddings of two tokens, which a batch does
    not have: here two tokens at the same position are alike if they are the same. The authors' entropy reward is
    another part, which is not here."""

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image times the weight of each token, and the weights of its KL."""
        credit = super().credit(batch)
        groups = credit.weights.unflatten(0, (-1, batch.group_size))[..., 0]
        similarity = agreement(batch.rollout.tokens, rivals(groups))
        return replace(
            credit,
            weights=credit.weights * advantage_weights(similarity, batch.group_size),
            kl_weights=(1 + similarity) / 2,
        )


def rivals(advantages: Float[Tensor, "N G"]) -> Float[Tensor, "N G G"]:
    """Return 1 for each pair of images of a group whose advantages differ in sign, or one of which is 0, and 0
    for other pairs and an image with itself."""
    opposite = advantages[:, :, None] * advantages[:, None] <= 0
    itself = torch.eye(advantages.shape[1], dtype=torch.bool, device=advantages.device)
    return (opposite & ~itself).to(advantages)


def advantage_weights(similarity: Float[Tensor, "B L"], group_size: int) -> Float[Tensor, "B L"]:
    """Return the factor of each token's advantage: 1 - similarity (from 0 to 1), divided by its mean over the tokens of
    the group; 0 if all of them are alike."""
    weights = (1 - similarity).unflatten(0, (-1, group_size))
    mean = weights.mean((1, 2), keepdim=True)
    return (weights / mean.clamp_min(torch.finfo(weights.dtype).tiny)).flatten(0, 1)
