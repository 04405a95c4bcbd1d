"""Importance ratios between the current policy and the policy that drew the tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    log_probs: Float[Tensor, "B L"],
    old_log_probs: Float[Tensor, "B L"],
    weights: Float[Tensor, "B #L"],
    clip: float,
    clip_high: float | None = None,
) -> Float[Tensor, "B L"]:
    """Return PPO's min(ratio·A, clip(ratio)·A) for each token (Gallici & Sáez de Ocáriz Borde, eq. 2).

    Args:
        log_probs: log-probabilities (nats) under the current policy, with gradients.
        old_log_probs: log-probabilities (nats) under the policy that drew the tokens.
        weights: the advantage A of each token, or (B, 1): one for all tokens of an image.
        clip: epsilon; the ratio is clipped to between 1 - epsilon and 1 + epsilon.
        clip_high: another epsilon for the upper bound (DAPO, arXiv 2503.14476, eq. 10); `clip` if not given.
    """
    ratio, high = (log_probs - old_log_probs).exp(), clip if clip_high is None else clip_high
    return torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + high) * weights)


def clipped_tokens(
    ratio: Float[Tensor, "B L"], weights: Float[Tensor, "B #L"], clip: float, clip_high: float | None = None
) -> Bool[Tensor, "B L"]:
    """Return which tokens have no gradient because their ratio is clipped."""
    high = clip if clip_high is None else clip_high
    return torch.where(weights > 0, ratio > 1 + high, ratio < 1 - clip) & (weights != 0)


def unit_means(values: Float[Tensor, "B L"], units: tuple[int, ...]) -> Float[Tensor, "B L"]:
    """Replace each value by the mean of its unit, e.g. of its scale.

    Args:
        values: one value per token.
        units: number of tokens in each unit; (L,) for the mean of the whole image.
    """
    means = torch.stack([part.mean(1) for part in values.split(units, dim=1)], dim=1)
    return means.repeat_interleave(torch.tensor(units, device=values.device), dim=1)
