"""The GRPO loss: a clipped surrogate and a penalty for leaving the reference."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the GRPO loss."""

    clip: float = 0.2
    """epsilon: the ratio counts only within 1 - epsilon and 1 + epsilon"""
    kl_weight: float = 0.2
    """beta: weight of the KL to the pre-trained model"""

    def __post_init__(self):
        if not 0 < self.clip < 1:
            raise UserError(f"loss.clip: {self.clip} is not between 0 and 1; the papers use 0.2")
        if self.kl_weight < 0:
            raise UserError(f"loss.kl_weight: {self.kl_weight} is negative; give 0 or more")


@dataclass(frozen=True, kw_only=True)
class LossStats:
    """Means over the tokens of a batch, as scalar tensors without gradient."""

    surrogate: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    ratio: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    """share of tokens whose gradient the clip has cut"""


def clipped_surrogate(
    log_probs: Float[Tensor, "B L"],
    old_log_probs: Float[Tensor, "B L"],
    advantages: Float[Tensor, " B"],
    clip: float,
) -> Float[Tensor, "B L"]:
    """PPO's min(ratio·A, clip(ratio)·A) a token, with the same advantage for all tokens of an image (eq. 2)."""
    ratio = (log_probs - old_log_probs).exp()
    advantages = advantages[:, None]
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def k3_divergence(log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Schulman's k3 estimate of KL(policy || reference) a token: exp(d) - d - 1 with d = log reference - log policy.

    It is unbiased for tokens drawn from the policy, and never negative.
    """
    difference = reference_log_probs - log_probs
    return difference.expm1() - difference


def grpo_loss(
    log_probs: Float[Tensor, "B L"],
    old_log_probs: Float[Tensor, "B L"],
    reference_log_probs: Float[Tensor, "B L"],
    advantages: Float[Tensor, " B"],
    config: LossConfig,
) -> tuple[Float[Tensor, ""], LossStats]:
    """Mean over all tokens of kl_weight·KL - surrogate (Gallici & Sáez de Ocáriz Borde, eq. 2).

    All images have the same number of tokens, so the mean over tokens is also the mean of the images' means.
    """
    surrogate = clipped_surrogate(log_probs, old_log_probs, advantages, config.clip)
    kl = k3_divergence(log_probs, reference_log_probs)
    loss = (config.kl_weight * kl - surrogate).mean()
    with torch.no_grad():
        ratio = (log_probs - old_log_probs).exp()
        positive = advantages[:, None] > 0
        cut = torch.where(positive, ratio > 1 + config.clip, ratio < 1 - config.clip) & (advantages[:, None] != 0)
        stats = LossStats(
            surrogate=surrogate.mean().detach(),
            kl=kl.mean().detach(),
            ratio=ratio.mean(),
            clip_fraction=cut.float().mean(),
        )
    return loss, stats
