"""Estimates of the KL divergence between policy and reference from the drawn tokens (Schulman 2020)."""

from collections.abc import Callable
from typing import Literal

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


Penalty = Literal["k2", "k3"]
PENALTIES: dict[Penalty, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2_divergence, "k3": k3_divergence}
"""Estimates whose gradient is useful in a loss, by name."""
