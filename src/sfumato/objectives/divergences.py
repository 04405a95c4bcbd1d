"""The KL divergence between policy and reference from the drawn tokens: estimates (Schulman 2020), and the exact one of
a vocabulary of two."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 20.0
"""Log-ratio (nats) at which the estimate stops growing: exp(20) = 5e8. In float32 it would overflow at 88."""


def k3_divergence(log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return Schulman's k3 estimate of KL(policy || reference) for each token.

    The estimate is exp(d) - d - 1, where d is the log-probability under the reference minus that under the policy. It
    is unbiased for tokens drawn from the policy, and never negative. Where d exceeds `LARGEST`, which happens to tokens
    that the policy has made nearly impossible, the estimate is that of `LARGEST`, without a gradient.
    """
    difference = (reference_log_probs - log_probs).clamp_max(LARGEST)
    return difference.expm1() - difference


def k1_divergence(log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return the k1 estimate of KL(policy || reference) for each token: the log-ratio.

    It is unbiased, but as a loss its gradient is 0 on average: use it to measure, or in the reward.
    """
    return log_probs - reference_log_probs


def k2_divergence(log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return the k2 estimate of KL(policy || reference) for each token: half the square of the log-ratio.

    Its value is biased, but for tokens drawn from the policy the gradient is that of the KL on average.
    """
    return (log_probs - reference_log_probs).clamp(-LARGEST, LARGEST).square() / 2


def bernoulli_divergence(
    log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """Return KL(policy || reference) for each token of a vocabulary of two, exactly.

    The probability p of the drawn token fixes that of the other, 1 - p, so no logits are needed: the divergence is
    p·log(p / q) + (1 - p)·log((1 - p) / (1 - q)), where q is the probability under the reference. A log-probability
    closer to 0 than the precision of its type (1e-7 in float32) cannot tell how small 1 - p is. It counts as that far
    from 0, without a gradient, so the divergence stays finite.
    """
    largest = -torch.finfo(log_probs.dtype).eps
    own, others = log_probs.clamp_max(largest), reference_log_probs.clamp_max(largest)
    return own.exp() * (own - others) - own.expm1() * (log1mexp(own) - log1mexp(others))


def log1mexp(x: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return log(1 - exp(x)) for x < 0, precise near 0 and far from it (Mächler 2012)."""
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


Penalty = Literal["k2", "k3", "exact"]
PENALTIES: dict[Penalty, Callable[[Tensor, Tensor], Tensor]] = {
    "k2": k2_divergence,
    "k3": k3_divergence,
    "exact": bernoulli_divergence,
}
"""Divergences whose gradient is useful in a loss, by name; `exact` only for a vocabulary of two."""
