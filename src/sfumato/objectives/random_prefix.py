"""GRPO on a random number of first units, weighted so that the expected gradient is that of all units."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class RandomPrefixGRPO(GRPO):
    """GRPO whose passes end, for each batch, after a random number of units (scales, or tokens of a next-token model).
    The tokens of a unit count more the less often the unit is kept, so that the expected gradient is that of GRPO."""

    whole: float = 0.25
    """probability that a batch keeps all units. Unit s of S is kept with the probability whole^((s - 1) / (S - 1)), and
    its tokens have the weight 1 / this probability; at 1 it is GRPO"""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.whole <= 1:
            raise UserError(f"objective.whole: {self.whole} is not above 0 and at most 1; 0.25 is a start")

    def prefix_probabilities(self, count: int) -> tuple[float, ...]:
        """Return the probabilities that a batch keeps the first 1, 2, ... of `count` units."""
        return tuple(mine - more for mine, more in pairwise([*kept_probabilities(self.whole, count), 0.0]))

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image times the factor of each token, which is also that of its KL."""
        credit, rollout = super().credit(batch), batch.rollout
        factors = token_factors(rollout.units, rollout.whole_units or rollout.units, self.whole).to(credit.weights)
        return replace(credit, weights=credit.weights * factors, kl_weights=factors.expand(len(batch), -1))


def kept_probabilities(whole: float, count: int) -> list[float]:
    """Return the probability that each of `count` units is kept: from 1 for the first, geometrically, to `whole`."""
    return [whole ** (unit / max(1, count - 1)) for unit in range(count)]


def token_factors(units: tuple[int, ...], whole_units: tuple[int, ...], whole: float) -> Float[Tensor, " L"]:
    """Return the factor of the loss of each kept token: with it, the mean over the kept tokens is in expectation the
    mean over all tokens.

    Args:
        units: number of tokens in each kept unit.
        whole_units: number of tokens in each unit of a whole image.
        whole: probability that all units are kept.
    """
    kept = torch.tensor(kept_probabilities(whole, len(whole_units))[: len(units)], dtype=torch.float64)
    weights = (1 / kept).repeat_interleave(torch.tensor(units))
    return (weights * (sum(units) / sum(whole_units))).float()
