"""GRPO (Shao et al. 2024) as Gallici & Sáez de Ocáriz Borde (2025) apply it to image generators."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.advantages import Deviation, group_advantages
from sfumato.objectives.divergences import LARGEST, PENALTIES, Penalty
from sfumato.objectives.objective import Credit
from sfumato.objectives.ratios import clipped_surrogate, clipped_tokens
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """GRPO: adds up the rewards, then normalizes the sum within each group; clipped surrogate with a KL penalty."""

    clip: float = 0.2
    """epsilon: the ratio is clipped to between 1 - epsilon and 1 + epsilon"""
    kl_weight: float = 0.2
    """beta: weight of the KL to the reference, the model before training; at 0, no reference is kept in memory"""
    kl: Penalty = "k3"
    """KL in the loss: k3, an estimate; k2, an estimate whose gradient is that of the KL for tokens that are just drawn;
    or exact, for models whose tokens have two values"""
    deviation: Deviation = "group"
    """what differences from the group's mean are divided by: the standard deviation of the group or of the batch, or
    none"""
    report_kl: bool = False
    """keep the reference and log the KL, even if the KL has weight 0"""
    skip_equal_groups: bool = True
    """skip the pass of images without an advantage if the KL has weight 0; the gradient is the same"""

    def __post_init__(self):
        check_clip(self.clip)
        check_kl_weight(self.kl_weight)

    @property
    def needs_reference(self) -> bool:
        """Whether the KL is part of the loss or logged."""
        return self.kl_weight > 0 or self.report_kl

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image over the others in its group (eq. 1)."""
        return group_credit(batch, self.deviation, skip=self.skip_equal_groups and not self.needs_reference)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the mean over all tokens of beta·KL - surrogate (eq. 2)."""
        return clipped_loss(log_probs, part, credit, self.clip, self.kl_weight, penalty=self.kl)


def check_clip(clip: float) -> None:
    """Raise a UserError if the distance of a ratio from 1 is out of range."""
    if not 0 < clip < 1:
        raise UserError(f"objective.clip: {clip} is not between 0 and 1; the papers use 0.2")


def check_kl_weight(kl_weight: float, name: str = "kl_weight") -> None:
    """Raise a UserError if the weight of the KL, an option of this name, is out of range."""
    if not 0 <= kl_weight < math.inf:
        raise UserError(f"objective.{name}: {kl_weight} is out of range; give 0 or more")


def group_credit(batch: Batch, deviation: Deviation = "group", *, skip: bool) -> Credit:
    """Return the advantage of each image over the others in its group as its credit; see `group_advantages` and
    `credit_of`."""
    advantages, equal = group_advantages(batch.rewards, batch.group_size, deviation=deviation)
    return credit_of(advantages, equal, skip=skip)


def credit_of(advantages: Float[Tensor, " B"], equal: Bool[Tensor, " N"], *, skip: bool) -> Credit:
    """Return advantages as credit for all tokens of each image.

    Args:
        advantages: one per image.
        equal: whether the rewards of each of N groups are equal, for the log.
        skip: whether images without an advantage have no effect on the gradient.
    """
    return Credit(
        weights=advantages[:, None],
        taught=advantages != 0 if skip else None,
        metrics={"equal_groups": equal.float().mean().item()},
    )


def clipped_loss(
    log_probs: Float[Tensor, "B L"],
    part: Batch,
    credit: Credit,
    clip: float,
    kl_weight: float,
    *,
    clip_high: float | None = None,
    penalty: Penalty = "k3",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the mean over all tokens of kl_weight·KL - surrogate; without reference log-probabilities, KL is left out.

    All images have the same number of tokens, so the mean over tokens is also the mean of the means per image.

    Returns:
        The loss, and means over the tokens: the ratio, the share of tokens whose gradient is clipped, the KL, and the
        share of tokens whose KL is clamped.
    """
    surrogate = clipped_surrogate(log_probs, part.rollout.log_probs, credit.weights, clip, clip_high)
    ratio = (log_probs.detach() - part.rollout.log_probs).exp()
    clipped = clipped_tokens(ratio, credit.weights, clip, clip_high)
    stats = {"ratio_mean": ratio.mean(), "clip_fraction": clipped.float().mean()}
    return penalized(-surrogate, log_probs, part, kl_weight, stats, penalty, credit.kl_weights)


def penalized(
    loss: Float[Tensor, "B L"],
    log_probs: Float[Tensor, "B L"],
    part: Batch,
    kl_weight: float,
    stats: dict[str, Tensor],
    penalty: Penalty = "k3",
    kl_weights: Float[Tensor, "B #L"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Add kl_weight·KL to the loss of each token, times its own factor in `kl_weights` if they are given; return the
    mean over all tokens, and the statistics with those of the KL (without these factors). Without reference
    log-probabilities, the KL is left out."""
    if part.reference_log_probs is not None:
        kl = PENALTIES[penalty](log_probs, part.reference_log_probs)
        loss = kl_weight * (kl if kl_weights is None else kl_weights * kl) + loss
        clamped = part.reference_log_probs - log_probs.detach() > LARGEST
        stats = {"kl": kl.detach().mean(), "kl_clamped": clamped.float().mean(), **stats}
        stats |= {f"kl/{name}": mean.mean() for name, mean in part.rollout.part_means(kl.detach()).items()}
    return loss.mean(), stats
