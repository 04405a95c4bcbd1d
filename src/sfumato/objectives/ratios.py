"""Importance ratios between the current policy and the policy that drew the tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    log_probs: Float[Tensor, "B L"],
    old_log_probs: Float[Tensor, "B L"],
    weights: Float[Tensor, "B #L"],
    clip: float,
) -> Float[Tensor, "B L"]:
    """Return PPO's min(ratio·A, clip(ratio)·A) for each token (Gallici & Sáez de Ocáriz Borde, eq. 2).

    Args:
        log_probs: log-probabilities (nats) under the current policy, with gradients.
        old_log_probs: log-probabilities (nats) under the policy that drew the tokens.
        weights: the advantage A of each token, or (B, 1): one for all tokens of an image.
        clip: epsilon; the ratio is clipped to between 1 - epsilon and 1 + epsilon.
    """
    ratio = (log_probs - old_log_probs).exp()
    return torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights)


def clipped_tokens(ratio: Float[Tensor, "B L"], weights: Float[Tensor, "B #L"], clip: float) -> Bool[Tensor, "B L"]:
    """Return which tokens have no gradient because their ratio is clipped."""
    return torch.where(weights > 0, ratio > 1 + clip, ratio < 1 - clip) & (weights != 0)
