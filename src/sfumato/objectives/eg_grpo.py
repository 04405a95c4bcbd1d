"""EG-GRPO (Song et al. 2026, arXiv 2604.02355): advantages follow the entropy of the tokens."""

from dataclasses import dataclass, replace

import torch

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class EntropyGuidedGRPO(GRPO):
    """EG-GRPO: the tokens of an image with the lowest entropy keep only the KL; those with the highest entropy get a
    bonus on their advantage. The entropy is that of drawing. The authors give 0.3 of the entropy divided by the
    logarithm of the vocabulary's size; a batch does not know this size, so here the bonus is per nat."""

    skipped: float = 0.2
    """share of the tokens of an image, those with the lowest entropy, without an advantage"""
    raised: float = 0.5
    """share of the tokens of an image, those with the highest entropy, with a bonus"""
    bonus: float = 0.03
    """bonus on the advantage for each nat of entropy; the authors' with 16384 codes"""
    largest_bonus: float = 0.3
    """largest bonus, as a share of the absolute advantage"""

    def __post_init__(self):
        super().__post_init__()
        if not (self.skipped >= 0 and self.raised >= 0 and self.skipped + self.raised <= 1):
            raise UserError(
                f"objective.skipped: {self.skipped}, with raised {self.raised}, is out of range; give shares of the "
                "tokens that add up to at most 1"
            )
        if not (self.bonus >= 0 and self.largest_bonus >= 0):
            raise UserError(
                f"objective.bonus: {self.bonus}, with largest_bonus {self.largest_bonus}, is out of range; give 0 or "
                "more"
            )

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each token."""
        credit, entropy = super().credit(batch), batch.rollout.entropy
        length = entropy.shape[1]
        rank = entropy.argsort(dim=1, stable=True).argsort(dim=1)
        low, high = rank < int(self.skipped * length), rank >= length - int(self.raised * length)
        bonus = (self.bonus * entropy).minimum(self.largest_bonus * credit.weights.abs())
        weights = torch.where(low, 0.0, torch.where(high, credit.weights + bonus, credit.weights))
        return replace(credit, weights=weights.to(credit.weights))
