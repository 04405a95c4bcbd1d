"""Drawn images and their scores: the tensors that sampling, objectives and engines exchange."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.request import Index, Request


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A tree of images: each `continuations` adjacent images have the same tokens before a unit, drawn once."""

    unit: int
    """the first unit that differs, counted from 0"""
    continuations: int
    """number of images that share the units before it"""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Images drawn from a policy, as tokens, with the log-probabilities and entropies from sampling."""

    request: Request
    """what the images should show"""
    tokens: Int[Tensor, "B L"]
    """tokens of the B images, unit after unit"""
    log_probs: Float[Tensor, "B L"]
    """log-probability of each token under the distribution it was drawn from (nats)"""
    entropy: Float[Tensor, "B L"]
    """entropy of that distribution (nats)"""
    units: tuple[int, ...] = ()
    """number of tokens in each unit, e.g. in each scale; empty if it is not known"""
    whole_units: tuple[int, ...] = ()
    """units of the whole images, if only the tokens of the first units are kept; empty otherwise"""
    context: Int[Tensor, "B L"] | None = None
    """tokens that the units were drawn after, if these are not the drawn ones (teacher forcing); None otherwise"""
    parts: Mapping[str, Bool[Tensor, "B L"]] = field(default_factory=dict)
    """which tokens belong to each part, e.g. "text" and "image"; tokens of no part are padding, of probability 1. Empty
    if there are no parts"""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Index) -> "Rollout":
        return Rollout(
            request=self.request[index],
            tokens=self.tokens[index],
            log_probs=self.log_probs[index],
            entropy=self.entropy[index],
            units=self.units,
            whole_units=self.whole_units,
            context=None if self.context is None else self.context[index],
            parts={name: mask[index] for name, mask in self.parts.items()},
        )

    def part_means(self, values: Float[Tensor, "B L"]) -> dict[str, Float[Tensor, " B"]]:
        """Return the mean of a value over the tokens of each part of each image; 0 for an empty part."""
        return {name: (values * mask).sum(1) / mask.sum(1).clamp_min(1) for name, mask in self.parts.items()}

    def prefix(self, count: int) -> "Rollout":
        """Return the same images with the tokens of their first `count` units only."""
        units = self.units[:count]
        return Rollout(
            request=self.request,
            tokens=self.tokens[:, : sum(units)],
            log_probs=self.log_probs[:, : sum(units)],
            entropy=self.entropy[:, : sum(units)],
            units=units,
            whole_units=self.whole_units or self.units,
            context=None if self.context is None else self.context[:, : sum(units)],
            parts={name: mask[:, : sum(units)] for name, mask in self.parts.items()},
        )

    def split(self, size: int) -> Iterator["Rollout"]:
        """Yield consecutive parts of `size` images; the last may be smaller."""
        for first in range(0, len(self), size):
            yield self[first : first + size]


def concatenate(rollouts: list[Rollout], request: Request) -> Rollout:
    """Join several rollouts into one; `request` is the request for all of their images, in the same order."""
    contexts = [r.context for r in rollouts if r.context is not None]  # all have one, or none
    return Rollout(
        request=request,
        tokens=torch.cat([r.tokens for r in rollouts]),
        log_probs=torch.cat([r.log_probs for r in rollouts]),
        entropy=torch.cat([r.entropy for r in rollouts]),
        units=rollouts[0].units,
        whole_units=rollouts[0].whole_units,
        context=torch.cat(contexts) if contexts else None,
        parts={name: torch.cat([r.parts[name] for r in rollouts]) for name in rollouts[0].parts},
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A scored rollout: the training data of one step. The images of a group are adjacent."""

    rollout: Rollout
    """the drawn images"""
    rewards: Float[Tensor, " B"]
    """weighted sum of the scores; NaN means that the image has no score"""
    scores: Mapping[str, Float[Tensor, " B"]]
    """unweighted scores of each reward, by name"""
    weights: Mapping[str, float]
    """weight of each reward in the sum, by name"""
    group_size: int
    """images per condition; not meaningful for a part of the batch"""
    tree_size: int = 1
    """number of adjacent images that share tokens"""
    reference_log_probs: Float[Tensor, "B L"] | None = None
    """log-probability of each token under the frozen reference (nats); None if the objective needs none"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """values to log"""

    def __len__(self) -> int:
        return len(self.rollout)

    def __getitem__(self, index: Index) -> "Batch":
        reference = self.reference_log_probs
        return Batch(
            rollout=self.rollout[index],
            rewards=self.rewards[index],
            scores={name: scores[index] for name, scores in self.scores.items()},
            weights=self.weights,
            group_size=self.group_size,
            tree_size=self.tree_size,
            reference_log_probs=None if reference is None else reference[index],
        )

    def minibatches(self, size: int, rng: torch.Generator) -> tuple[Int[Tensor, " M"], ...]:
        """Return the positions of all images in random order, in parts of `size`, a multiple of `tree_size`.

        Trees stay together: a second update with tokens that have just become unlikely would have an extreme KL.
        """
        trees = torch.randperm(len(self) // self.tree_size, generator=rng)[:, None]
        return (trees * self.tree_size + torch.arange(self.tree_size)).flatten().split(size)
