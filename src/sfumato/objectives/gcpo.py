"""GCPO (Zhang et al. 2025, arXiv 2509.22485): only the critical tokens of an image learn."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit
from sfumato.objectives.similarity import agreement
from sfumato.rollout import Batch

LARGEST_CHANGE = 0.5
"""Log-ratio to the reference (nats) beyond which a token counts no more in the dynamic weight."""


@dataclass(frozen=True, kw_only=True)
class GCPO(GRPO):
    """GCPO: learns from the first tokens of an image, from those where entropy changes most between neighbors, and from
    those that differ most within the group; and more where the policy has become surer than the reference. The authors
    compare embeddings within a group, which a batch does not have: here tokens are alike if they are the same."""

    share: float = 0.1
    """share of the tokens that each of the three criteria selects; together they are three times as many"""
    dynamic: bool = True
    """multiply advantages by the mean ratio to the reference of all tokens up to this one; needs the reference"""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1 / 3:
            raise UserError(f"objective.share: {self.share} is not between 0 and 1/3; the paper uses 0.1")

    @property
    def needs_reference(self) -> bool:
        """Whether the KL or the dynamic weight is used."""
        return self.dynamic or super().needs_reference

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each critical token, and 0 for the others, which have no KL either."""
        credit, rollout = super().credit(batch), batch.rollout
        chosen = critical_tokens(rollout.tokens, rollout.entropy, rollout.units, batch.group_size, self.share)
        kept = chosen.to(credit.weights) / chosen.to(credit.weights).mean()
        weights = credit.weights * kept
        if self.dynamic and batch.reference_log_probs is not None:
            weights = weights * confidence(rollout.log_probs, batch.reference_log_probs)
        return replace(credit, weights=weights, kl_weights=kept)


def critical_tokens(
    tokens: Int[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
    units: tuple[int, ...],
    group_size: int,
    share: float,
) -> Bool[Tensor, "B L"]:
    """Return which tokens are critical: k each for three reasons, where k is this share of L, rounded down, at least 1.

    They are the first k; of those that are neither among the first nor the last tenth, the k with the largest change of
    entropy; and of all others, the k positions where the fewest pairs of the group's images have the same token. Of
    equal ones, the first is taken. If too few are left, fewer are taken.

    Args:
        tokens: groups of `group_size` adjacent images.
        entropy: entropy of each token's distribution (nats).
        units: number of tokens in each unit.
        group_size: number of images per group.
        share: share of the tokens to select for each reason.
    """
    length = tokens.shape[1]
    count = max(1, int(share * length))
    position = torch.arange(length, device=tokens.device)
    first = position < count
    inner = ~first & (position >= length // 10) & (position < length // 10 + int(0.8 * length))
    changing = highest(entropy_changes(entropy, units), inner.expand_as(tokens), count)
    others = 1 - torch.eye(group_size, device=tokens.device)
    alike = agreement(tokens, others.expand(len(tokens) // group_size, -1, -1))
    shared = alike.unflatten(0, (-1, group_size)).mean(1).repeat_interleave(group_size, dim=0)
    different = highest(-shared, ~(first | changing), count)
    return first | changing | different


def highest(values: Float[Tensor, "B L"], allowed: Bool[Tensor, "B L"], count: int) -> Bool[Tensor, "B L"]:
    """Return where the `count` highest of the allowed values of each row are; of equal values, the first."""
    ranks = values.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < count) & allowed


def entropy_changes(entropy: Float[Tensor, "B L"], units: tuple[int, ...]) -> Float[Tensor, "B L"]:
    """Return the length of the gradient of the entropy over the map of tokens that each token belongs to.

    All tokens of a next-token model are one map; so are those of each unit of a next-scale model. Maps whose number of
    tokens is not a square are lines. As the authors do, each value is first replaced by the mean of itself and its
    neighbors on the left and in the row above.
    """
    sizes = units if any(size > 1 for size in units) else (entropy.shape[1],)
    return torch.cat([map_changes(part) for part in entropy.split(sizes, dim=1)], dim=1)


def map_changes(entropy: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """Return the length of the gradient of one map, as central differences, one-sided at the edges."""
    side = math.isqrt(entropy.shape[1])
    height, width = (side, side) if side**2 == entropy.shape[1] else (1, entropy.shape[1])
    means = causal_means(entropy.unflatten(1, (height, width)))
    axes = [axis for axis in (1, 2) if means.shape[axis] > 1]
    if not axes:
        return torch.zeros_like(entropy)
    return torch.stack(torch.gradient(means, dim=axes)).square().sum(0).sqrt().flatten(1)


def causal_means(values: Float[Tensor, "B h w"]) -> Float[Tensor, "B h w"]:
    """Return the mean of each value, the one on its left, and the three above, as far as they exist."""
    kernel = values.new_tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])[None, None]
    sums = F.conv2d(values[:, None], kernel, padding=1)[:, 0]
    return sums / F.conv2d(torch.ones_like(values[:1, None]), kernel, padding=1)[:, 0]


def confidence(log_probs: Float[Tensor, "B L"], reference_log_probs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return the mean ratio of the policy's probability to the reference's over all tokens up to each one.

    Each log-ratio is clipped to ±`LARGEST_CHANGE`, so the weight is between 0.6 and 1.7. It is computed once per batch,
    from the log-probabilities of drawing, and has no gradient.
    """
    ratio = (log_probs - reference_log_probs).clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp()
    return ratio.cumsum(1) / torch.arange(1, ratio.shape[1] + 1, device=ratio.device)
