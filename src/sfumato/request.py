"""Requests for images: words, which rewards and people read, and inputs, which only the family reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Index = Tensor | slice
"""Positions in a batch: a tensor of numbers or a slice."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Description of B images in words, for rewards and people. Index with positions or a slice to select a part."""

    names: tuple[str, ...]
    """class names, or the captions themselves"""
    labels: Int[Tensor, " B"] = None  # pyright: ignore[reportAssignmentType] (filled in below)
    """class numbers; -1 if unknown, which is the default"""
    captions: tuple[str, ...] = ()
    """sentences that describe the images, for rewards that read text; the names by default"""
    metadata: tuple[Mapping[str, object], ...] = ()
    """other data from the prompt file for each image, for rewards; empty by default"""

    def __post_init__(self):
        count = len(self.names)
        if self.labels is None:
            object.__setattr__(self, "labels", torch.full((count,), -1))
        object.__setattr__(self, "captions", self.captions or self.names)
        object.__setattr__(self, "metadata", self.metadata or ({},) * count)
        for field in ("labels", "captions", "metadata"):
            if len(getattr(self, field)) != count:
                raise ValueError(
                    f"{field}: {len(getattr(self, field))} {field} for {count} names; give one for each name"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Index) -> "Words":
        positions = positions_of(index, len(self))
        chosen = positions.tolist()
        return Words(
            names=tuple(self.names[i] for i in chosen),
            labels=self.labels[positions.to(self.labels.device)],
            captions=tuple(self.captions[i] for i in chosen),
            metadata=tuple(self.metadata[i] for i in chosen),
        )

    def repeat(self, group_size: int) -> "Words":
        """Repeat each image `group_size` times; copies are adjacent."""
        return self[repeated_positions(len(self), group_size)]

    def to(self, device: torch.device | str) -> "Words":
        """Return a copy with the labels on another device."""
        return replace(self, labels=self.labels.to(device))


def join_words(first: Words, second: Words) -> Words:
    """Return the words of both."""
    return Words(
        names=first.names + second.names,
        labels=torch.cat([first.labels, second.labels]),
        captions=first.captions + second.captions,
        metadata=first.metadata + second.metadata,
    )


@runtime_checkable
class Inputs(Protocol):
    """Inputs of a family's network for B images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Index, /) -> "Inputs":
        """Return the inputs at these positions."""
        ...

    def drop(self, null: Bool[Tensor, " B"], /) -> "Inputs":
        """Return a copy with the condition of these images removed: the unconditional case of guidance, for
        pre-training."""
        ...

    def to(self, device: torch.device | str, /) -> "Inputs":
        """Return a copy on another device."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassInputs:
    """Inputs of a class-conditional model."""

    labels: Int[Tensor, " B"]
    """class numbers"""
    null: Bool[Tensor, " B"] | None = None
    """True for images without a condition; all images have one by default"""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Index) -> "ClassInputs":
        positions = positions_of(index, len(self)).to(self.labels.device)
        return ClassInputs(labels=self.labels[positions], null=None if self.null is None else self.null[positions])

    def drop(self, null: Bool[Tensor, " B"]) -> "ClassInputs":
        """Return a copy in which these images are unconditional."""
        return replace(self, null=null)

    def to(self, device: torch.device | str) -> "ClassInputs":
        """Return a copy on another device."""
        return ClassInputs(labels=self.labels.to(device), null=None if self.null is None else self.null.to(device))


@dataclass(frozen=True, kw_only=True)
class CaptionFeatures:
    """Output of a text encoder for P captions, padded on the LEFT: each caption fills the last positions of its row."""

    features: Float[Tensor, "P T W"]
    """one vector per text token; 0 in padding"""
    mask: Bool[Tensor, "P T"]
    """True for text tokens, False for padding"""

    @staticmethod
    def padded(captions: Sequence[Float[Tensor, "_ W"]], longest: int | None = None) -> "CaptionFeatures":
        """Left-pad captions of different lengths with zeros to one tensor; tokens beyond `longest` are cut off."""
        cut = [features[:longest] for features in captions]
        lengths = torch.tensor([len(features) for features in cut])
        rows = pad_sequence(cut, batch_first=True, padding_side="left")
        return CaptionFeatures(features=rows, mask=torch.arange(rows.shape[1]) >= rows.shape[1] - lengths[:, None])

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> "CaptionFeatures":
        """Return a copy on another device."""
        return CaptionFeatures(features=self.features.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class TextInputs:
    """Inputs of a model that reads captions: a table of distinct captions, and the row of each image in it."""

    rows: Int[Tensor, " B"]
    """row of each image in the table"""
    captions: CaptionFeatures
    """table of distinct captions, shared by all parts of these inputs"""
    null: Bool[Tensor, " B"] | None = None
    """True for images without a condition; all images have one by default"""
    null_row: int | None = None
    """row of the caption that stands for no condition, for models whose unconditional case is a caption"""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> "TextInputs":
        positions = positions_of(index, len(self)).to(self.rows.device)
        null = None if self.null is None else self.null[positions]
        return replace(self, rows=self.rows[positions], null=null)

    def drop(self, null: Bool[Tensor, " B"]) -> "TextInputs":
        """Return a copy in which these images are unconditional."""
        return replace(self, null=null)

    def to(self, device: torch.device | str) -> "TextInputs":
        """Return a copy on another device, with only the captions that are in use."""
        if self.rows.device == torch.device(device):
            return self
        nulls = [] if self.null_row is None else [self.null_row]
        used, places = torch.cat([self.rows, self.rows.new_tensor(nulls)]).unique(return_inverse=True)
        table = CaptionFeatures(features=self.captions.features[used], mask=self.captions.mask[used]).to(device)
        rows, null_row = places[: len(self)].to(device), int(places[-1]) if nulls else None
        null = None if self.null is None else self.null.to(device)
        return TextInputs(rows=rows, captions=table, null=null, null_row=null_row)


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """Inputs of a language model: a table of distinct prompts as token ids, padded on the LEFT, and the row of each
    image in it."""

    rows: Int[Tensor, " B"]
    """row of each image in the table"""
    ids: Int[Tensor, "P T"]
    """token ids of the prompts, shared by all parts of these inputs"""
    mask: Bool[Tensor, "P T"]
    """True for tokens of the prompt, False for padding"""
    padding: int
    """token id of padding"""
    null: Bool[Tensor, " B"] | None = None
    """True for images without a condition; all images have one by default"""
    null_row: int | None = None
    """row of the prompt that stands for no condition, for models whose unconditional case is a prompt"""

    @staticmethod
    def padded(prompts: Sequence[Sequence[int]], padding: int) -> "TokenInputs":
        """Left-pad prompts of different lengths; there is one image of each."""
        rows = pad_sequence(
            [torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_value=padding, padding_side="left"
        )
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(rows.shape[1]) >= rows.shape[1] - lengths[:, None]
        return TokenInputs(rows=torch.arange(len(prompts)), ids=rows, mask=mask, padding=padding)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> "TokenInputs":
        positions = positions_of(index, len(self)).to(self.rows.device)
        null = None if self.null is None else self.null[positions]
        return replace(self, rows=self.rows[positions], null=null)

    def drop(self, null: Bool[Tensor, " B"]) -> "TokenInputs":
        """Return a copy in which these images are unconditional."""
        return replace(self, null=null)

    def to(self, device: torch.device | str) -> "TokenInputs":
        """Return a copy on another device."""
        null = None if self.null is None else self.null.to(device)
        return replace(self, rows=self.rows.to(device), ids=self.ids.to(device), mask=self.mask.to(device), null=null)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for B images. Index with positions or a slice to select a part."""

    words: Words
    """description of the images, for rewards and people"""
    inputs: Inputs
    """inputs of the network, for the family alone"""

    def __post_init__(self):
        if len(self.words) != len(self.inputs):
            raise ValueError(f"inputs: {len(self.inputs)} inputs for {len(self.words)} words; give one for each image")

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: Index) -> "Request":
        return Request(words=self.words[index], inputs=self.inputs[index])

    def repeat(self, group_size: int) -> "Request":
        """Repeat each image `group_size` times; copies are adjacent."""
        return self[repeated_positions(len(self), group_size)]

    def to(self, device: torch.device | str) -> "Request":
        """Return a copy with the inputs on another device."""
        return replace(self, inputs=self.inputs.to(device))


def inputs_of(asked: Request | Inputs) -> Inputs:
    """Return the inputs of a request; inputs are returned unchanged."""
    return asked.inputs if isinstance(asked, Request) else asked


def positions_of(index: Index, count: int) -> Int[Tensor, " N"]:
    """Convert an index to positions on the CPU."""
    return torch.arange(count)[index] if isinstance(index, slice) else index.cpu()


def repeated_positions(count: int, group_size: int) -> Int[Tensor, " N"]:
    """Return positions that repeat each of `count` items `group_size` times."""
    return torch.arange(count).repeat_interleave(group_size)
