"""GRPO on the first units of an image: the forward and backward pass are cut there."""

from dataclasses import dataclass

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class PrefixGRPO(GRPO):
    """GRPO that learns from the first scales of a next-scale model, or the first tokens of a next-token model. Images
    are drawn and scored whole, but the reference and the update never see the other tokens, which are most of the cost:
    the first 5 of the 10 scales of VAR have 55 of its 680 tokens."""

    units: int = 5
    """number of scales, or of tokens of a next-token model, to learn from"""

    @property
    def learned_units(self) -> int:
        """How many first units the rollouts keep."""
        return self.units

    def __post_init__(self):
        super().__post_init__()
        if self.units < 1:
            raise UserError(f"objective.units: {self.units} is too small; give at least 1")
