"""What is asked for and what was drawn: the tensors that pass between sampling, rewards and losses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CaptionFeatures:
    """What a text encoder makes of P captions, padded at the LEFT: the last positions of a row are its caption."""

    features: Float[Tensor, "P T W"]
    """a vector a text token; 0 where padded"""
    mask: Bool[Tensor, "P T"]
    """True where there is a text token"""

    @staticmethod
    def padded(captions: Sequence[Float[Tensor, "_ W"]], longest: int | None = None) -> "CaptionFeatures":
        """Captions of different lengths as one tensor, zeros first; what is beyond `longest` tokens is cut off."""
        cut = [features[:longest] for features in captions]
        lengths = torch.tensor([len(features) for features in cut])
        rows = pad_sequence(cut, batch_first=True, padding_side="left")
        return CaptionFeatures(features=rows, mask=torch.arange(rows.shape[1]) >= rows.shape[1] - lengths[:, None])

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> "CaptionFeatures":
        """The same on another device."""
        return CaptionFeatures(features=self.features.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What B images are asked to show. Indexing with a tensor of positions or a slice gives a part."""

    labels: Int[Tensor, " B"]
    """class numbers, -1 where only the name is known; with `text`, the row of each image's caption there"""
    names: tuple[str, ...]
    """class names, or the captions themselves: for people to read"""
    captions: tuple[str, ...] = ()
    """what the images should show in words, for rewards that read text; the names if not given"""
    metadata: tuple[Mapping[str, object], ...] = ()
    """what else the source of the prompts says of each, for rewards; nothing if not given"""
    text: CaptionFeatures | None = None
    """distinct captions as a text-conditional generator reads them; shared by all parts of these conditions"""
    null: Bool[Tensor, " B"] | None = None
    """images of which nothing in particular is asked: guidance's unconditional case, for pre-training"""

    def __post_init__(self):
        object.__setattr__(self, "captions", self.captions or self.names)
        object.__setattr__(self, "metadata", self.metadata or ({},) * len(self.names))
        for field in ("names", "captions", "metadata"):
            if len(getattr(self, field)) != len(self.labels):
                count = len(getattr(self, field))
                raise UserError(f"{field}: {count} {field} for {len(self.labels)} labels; give one each")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Conditions":
        positions = torch.arange(len(self))[index if isinstance(index, slice) else index.cpu()]
        chosen, on_device = positions.tolist(), positions.to(self.labels.device)
        return replace(
            self,
            labels=self.labels[on_device],
            names=tuple(self.names[i] for i in chosen),
            captions=tuple(self.captions[i] for i in chosen),
            metadata=tuple(self.metadata[i] for i in chosen),
            null=None if self.null is None else self.null[on_device],
        )

    def repeat(self, group_size: int) -> "Conditions":
        """Each condition `group_size` times, copies next to each other."""
        return self[torch.arange(len(self)).repeat_interleave(group_size)]

    def to(self, device: torch.device | str) -> "Conditions":
        """The same on another device; of the captions only those that are asked for."""
        labels, text = self.labels, self.text
        if text is not None:
            used, labels = labels.unique(return_inverse=True)
            text = CaptionFeatures(features=text.features[used], mask=text.mask[used]).to(device)
        return replace(
            self,
            labels=labels.to(device),
            text=text,
            null=None if self.null is None else self.null.to(device),
        )


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


def concatenate(rollouts: list[Rollout], conditions: Conditions) -> Rollout:
    """One rollout of all the images of several, whose conditions in all are `conditions`."""
    return Rollout(
        conditions=conditions,
        tokens=torch.cat([r.tokens for r in rollouts]),
        log_probs=torch.cat([r.log_probs for r in rollouts]),
        entropy=torch.cat([r.entropy for r in rollouts]),
    )
