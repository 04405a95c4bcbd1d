"""Attention over parts of a sequence, and memory for decoding, shared by the transformers of all families."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValueCache:
    """Keys and values of one attention layer, written in place to memory that is allocated once.

    The memory is allocated for `length` positions when the first ones are added, in their type, which under autocast is
    not the type of the network's weights.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, length: int):
        self.capacity = length
        self.length = 0
        self.batch = 0
        """number of rows in use"""

    def keep(self, rows: int) -> None:
        """Keep only the first `rows` rows."""
        self.batch = rows

    def clear(self) -> None:
        """Forget everything, but keep the memory for as many rows of the same type."""
        self.length = 0

    def fork(self, repeats: int) -> "KeyValueCache":
        """Return a copy with each row in use `repeats` times; copies are adjacent."""
        twin = KeyValueCache(self.capacity)
        twin.length, twin.batch = self.length, self.batch * repeats
        twin.keys = self.keys[: self.batch].repeat_interleave(repeats, dim=0)
        twin.values = self.values[: self.batch].repeat_interleave(repeats, dim=0)
        return twin

    def append(
        self, keys: Float[Tensor, "B H T d"], values: Float[Tensor, "B H T d"]
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Add T positions; returns keys and values of all N positions so far (views, not copies)."""
        if not self.length:
            self.batch, num_heads, _, width = keys.shape
            if not hasattr(self, "keys"):
                # Zeros, because `put` makes all positions visible to the attention kernel, and masks those to come.
                self.keys = keys.new_zeros(self.batch, num_heads, self.capacity, width)
                self.values = values.new_zeros(self.batch, num_heads, self.capacity, width)
        rows, end = self.batch, self.length + keys.shape[2]
        self.keys[:rows, :, self.length : end] = keys
        self.values[:rows, :, self.length : end] = values
        self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def put(
        self, keys: Float[Tensor, "B H 1 d"], values: Float[Tensor, "B H 1 d"], slot: "Slot"
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Write one position to a slot; returns keys and values of the slot's N positions (views, not copies).

        No number in Python changes, so a compiled or recorded step serves many positions.
        """
        held, held_values = self.keys[: len(keys)], self.values[: len(keys)]
        held.index_copy_(2, slot.position, keys)
        held_values.index_copy_(2, slot.position, values)
        return held[:, :, : slot.end], held_values[:, :, : slot.end]


class Slot:
    """Place of the next token in the caches of all layers.

    Attributes:
        position: its position, as a tensor of one element.
        end: number of positions that the attention kernel reads.
        mask: added to the scores, (R or 1, 1, 1, end): 0 or -inf; None if the token may attend to all positions.
    """

    def __init__(self, position: Int[Tensor, "1"], end: int, mask: Float[Tensor, "#R 1 1 N"] | None):
        self.position, self.end, self.mask = position, end, mask


def key_block(device: torch.device) -> int:
    """Return the granularity of the number of keys that a decoding step reads.

    On a GPU, each number of keys is a new shape: a kernel to choose, an attention plan to build (40 to 400 ms with
    cuDNN), a graph to record. There the number is rounded up to a multiple of 64. On the CPU shapes cost nothing, and
    exact numbers save work.
    """
    return 1 if device.type == "cpu" else 64


class Span(NamedTuple):
    """A contiguous part of the sequence, which attends to the keys from `first` to its own end."""

    start: int
    end: int
    mask: Bool[Tensor, "T N"] | None = None
    """True for the keys that each position attends to; None means all of them"""
    first: int = 0


def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    spans: Sequence[Span],
    softmax_scale: float,
) -> Float[Tensor, "B H T d"]:
    """Compute attention span by span, which avoids most of the scores that a single mask would discard."""
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, span.start : span.end],
            key[:, :, span.first : span.end],
            value[:, :, span.first : span.end],
            attn_mask=span.mask,
            scale=softmax_scale,
        )
        for span in spans
    ]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def causal_spans(units: Sequence[int], mask: Bool[Tensor, "L L"]) -> list[Span]:
    """Return spans in which each scale attends to itself and all coarser ones: one for each of the two finest scales
    (most of the tokens), and a masked one for the others.

    Args:
        units: number of tokens of each scale.
        mask: which keys each position attends to, at least for all scales but the two finest.
    """
    coarse = sum(units[:-2])
    spans = [Span(0, coarse, mask[:coarse, :coarse])] if coarse else []
    for unit in units[-2:]:
        start = spans[-1].end if spans else 0
        spans.append(Span(start, start + unit))
    return spans


def separate_spans(units: Sequence[int]) -> list[Span]:
    """Return spans in which each scale attends only to itself."""
    ends = list(accumulate(units))
    return [Span(end - unit, end, first=end - unit) for unit, end in zip(units, ends, strict=True)]
