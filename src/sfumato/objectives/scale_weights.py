"""GRPO whose scales count by a power of their size (Sun et al. 2026, arXiv 2601.02256)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class ScaleWeightedGRPO(GRPO):
    """GRPO for next-scale models: the tokens of a scale with n tokens have the weight n^-alpha, so that the many tokens
    of the last scales do not outweigh the few that decide what is drawn."""

    alpha: float = 0.7
    """power: 0 is GRPO, at 1 all scales have the same weight"""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= 2:
            raise UserError(
                f"objective.alpha: {self.alpha} is not from 0 to 2; at 0 it is GRPO, at 1 all scales count alike"
            )

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image times the weight of each token."""
        credit = super().credit(batch)
        weights = unit_weights(batch.rollout.units, self.alpha).to(credit.weights)
        return replace(credit, weights=credit.weights * weights)


def unit_weights(units: tuple[int, ...], alpha: float) -> Float[Tensor, " L"]:
    """Return one weight per token: n^-alpha for a unit of n tokens, scaled so that the mean over all tokens is 1."""
    sizes = torch.tensor(units, dtype=torch.float64)
    weights = sizes.pow(-alpha).repeat_interleave(torch.tensor(units))
    return (weights / weights.mean()).float()
