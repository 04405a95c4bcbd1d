"""GRPO on the first units of an image: the forward and backward pass are cut there."""

from dataclasses import dataclass

from sfumato.errors import UserError
from sfumato.objectives.scale_weights import ScaleWeightedGRPO


@dataclass(frozen=True, kw_only=True)
class PrefixGRPO(ScaleWeightedGRPO):
    """GRPO that learns from the first scales of a next-scale model, or the first tokens of a next-token model. Images
    are drawn and scored whole, but the reference and the update never see the other tokens, which are most of the cost:
    the first 5 of the 10 scales of VAR have 55 of its 680 tokens. With `preview`, the others are not even drawn."""

    units: int = 5
    """number of scales, or of tokens of a next-token model, to learn from"""
    alpha: float = 0.0
    """weight n^-alpha of a token of a scale with n tokens, as in scale-grpo: 0 is GRPO"""
    preview: bool = False
    """draw, decode and score these scales only: rewards see the coarse image that they make. For rewards that do not
    depend on details, such as brightness"""

    def __post_init__(self):
        super().__post_init__()
        if self.units < 1:
            raise UserError(f"objective.units: {self.units} is too small; give at least 1")

    def prefix_probabilities(self, count: int) -> tuple[float, ...]:
        """Return the probabilities that a batch keeps the first 1, 2, ... of `count` units: always the same number.

        Raises:
            UserError: there are fewer units.
        """
        if self.units > count:
            raise UserError(f"objective.units: {self.units} is not from 1 to {count}, the units of the model")
        return tuple(float(number == self.units) for number in range(1, count + 1))
