"""Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): GRPO without the two terms that bias it."""

from dataclasses import dataclass

from sfumato.objectives.advantages import Deviation
from sfumato.objectives.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """Dr. GRPO: differences from the group's mean are not divided by a standard deviation, so groups with nearly equal
    rewards count little. Its other change, a constant length, is none here: all images have the same number of tokens.
    """

    kl_weight: float = 0.0
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""
    deviation: Deviation = "none"
    """what differences from the group's mean are divided by: the standard deviation of the group or of the batch, or
    none"""
