"""What is asked for and what was drawn: the tensors that pass between sampling, rewards and losses."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What B images are asked to show. Indexing with a tensor of positions or a slice gives a part."""

    labels: Int[Tensor, " B"]
    """class numbers; a generator's null class asks for an unconditional image"""
    names: tuple[str, ...]
    """class names, for people and for rewards that read text"""

    def __post_init__(self):
        if len(self.names) != len(self.labels):
            raise ValueError(f"names: {len(self.names)} names for {len(self.labels)} labels; give one each")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Conditions":
        positions = torch.arange(len(self))[index if isinstance(index, slice) else index.cpu()]
        names = tuple(self.names[i] for i in positions.tolist())
        return Conditions(labels=self.labels[positions.to(self.labels.device)], names=names)

    def repeat(self, group_size: int) -> "Conditions":
        """Each condition `group_size` times, copies next to each other."""
        return self[torch.arange(len(self)).repeat_interleave(group_size)]

    def to(self, device: torch.device | str) -> "Conditions":
        """The same on another device."""
        return replace(self, labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Images drawn from a policy, as tokens, with what the draw knew of them."""

    conditions: Conditions
    tokens: Int[Tensor, "B L"]
    log_probs: Float[Tensor, "B L"]
    """log-probability of each token under the distribution it was drawn from (nats)"""
    entropy: Float[Tensor, "B L"]
    """entropy of that distribution (nats)"""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor | slice) -> "Rollout":
        return Rollout(
            conditions=self.conditions[index],
            tokens=self.tokens[index],
            log_probs=self.log_probs[index],
            entropy=self.entropy[index],
        )

    def split(self, size: int) -> Iterator["Rollout"]:
        """Consecutive parts of `size` images; the last may be smaller."""
        for first in range(0, len(self), size):
            yield self[first : first + size]


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """One rollout of all the images of several."""
    return Rollout(
        conditions=Conditions(
            labels=torch.cat([r.conditions.labels for r in rollouts]),
            names=tuple(name for r in rollouts for name in r.conditions.names),
        ),
        tokens=torch.cat([r.tokens for r in rollouts]),
        log_probs=torch.cat([r.log_probs for r in rollouts]),
        entropy=torch.cat([r.entropy for r in rollouts]),
    )
