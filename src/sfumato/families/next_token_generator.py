"""Generators of one token after another, from a condition that comes first: what LlamaGen, Janus-Pro and SimpleAR
share."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.next_token_network import NextTokenNetwork
from sfumato.families.shared import check_size, check_step, keep_nucleus, keep_top_k, with_parts
from sfumato.nn.attention import KeyValueCache, Slot, key_block
from sfumato.policy import Card
from sfumato.request import Inputs, Request, Words, inputs_of
from sfumato.settings import PLAIN, Settings


@dataclass(kw_only=True)
class NextTokenState:
    """State of decoding. With guidance there are R = 2B rows: B conditional ones, then their unconditional copies."""

    first: Float[Tensor, "B 1 V"]
    """guided logits of the first token"""
    caches: list[KeyValueCache]
    columns: Bool[Tensor, "#R 1 1 T"] | None
    """True for positions that may be attended to once they are written; None if all may be"""
    strengths: Float[Tensor, " L"] | None
    """strength of guidance for each token, 1 after the guidance interval; None without guidance"""
    guided: int
    """number of tokens until the last guided one"""
    position: Int[Tensor, "1"]
    """place of the next token in the caches"""
    block: int
    """granularity of the number of keys, see `key_block`"""
    drawn: int = 0
    """number of tokens whose logits have been computed"""

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.first)

    def fits(self, fresh: "NextTokenState", rows: int, dtype: torch.dtype) -> bool:
        """Return whether the memory of this state suits another one of so many rows, with caches of this type."""
        cache, tensors = self.caches[0], (self.columns, self.strengths)
        shapes = [None if tensor is None else tensor.shape for tensor in tensors]
        others = [None if tensor is None else tensor.shape for tensor in (fresh.columns, fresh.strengths)]
        numbers = (self.batch, self.guided, self.block, cache.capacity, len(cache.keys), cache.keys.dtype)
        return shapes == others and numbers == (
            fresh.batch, fresh.guided, fresh.block, fresh.caches[0].capacity, rows, dtype
        )  # fmt: skip

    def renewed(self, fresh: "NextTokenState") -> "NextTokenState":
        """Take over another state that this one fits, in place, with empty caches; return this state."""
        self.first, self.drawn = fresh.first, 0
        for ours, theirs in ((self.columns, fresh.columns), (self.strengths, fresh.strengths)):
            if ours is not None and theirs is not None:
                ours.copy_(theirs)
        self.position.copy_(fresh.position)
        for cache in self.caches:
            cache.clear()
        return self

    def advance(self) -> tuple[int, int]:
        """Count the next token; return the numbers of rows and of keys that its step computes with.

        Steps with the same numbers are the same computation on the same memory, which can be recorded.
        """
        rows = 2 * self.batch if self.drawn < self.guided else self.batch
        if rows < self.caches[0].batch:  # after the guidance interval, only the conditional half is computed
            for cache in self.caches:
                cache.keep(rows)
        end = -(-(self.caches[0].length + self.drawn) // self.block) * self.block
        self.drawn += 1
        return rows, min(end, self.caches[0].capacity)

    def slot(self, rows: int, end: int) -> Slot:
        """Return the place of the next token in the caches."""
        seen = None if self.columns is None else self.columns[:rows, ..., :end]
        if self.block > 1:  # positions to come are among the keys
            written = (torch.arange(end, device=self.position.device) <= self.position)[None, None, None]
            seen = written if seen is None else seen & written
        if seen is None:
            return Slot(self.position, end, None)
        # Attention adds the mask to its scores, and would convert one of booleans again in every layer.
        mask = torch.zeros(seen.shape, dtype=self.caches[0].keys.dtype, device=seen.device)
        return Slot(self.position, end, mask.masked_fill(~seen, -torch.inf))


class NextToken(nn.Module):
    """A next-token generator: a trainable transformer and its frozen tokenizer of square images.

    With guidance s, the logits are unconditional + s·(conditional - unconditional), in sampling and in scoring. At
    s = 1 they are the conditional logits, and the unconditional half is not computed. A list sets s for each token.
    `guidance_interval` is the parameter of LlamaGen's sampler: -1 guides all tokens, i >= 0 only the first i + 2.
    """

    reduces_logits = True
    scores_prefixes = True
    text = False
    """whether the tokens are text that continues the condition, not an image"""
    network: Any
    """a `NextTokenNetwork`"""

    def __init__(self, network: NextTokenNetwork, tokenizer: Any, card: Card, guidance_interval: int = -1):
        """Put a network and a tokenizer together.

        Args:
            network: the network.
            tokenizer: a module with `encode`, `decode`, and a `config` with `grid_size` and `image_size`.
            card: description of the model.
            guidance_interval: see above.
        """
        super().__init__()
        self.card, self.guidance_interval = card, guidance_interval
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.network = network
        self.units: tuple[int, ...] = (1,) * tokenizer.config.grid_size**2

    def inputs(self, words: Words) -> Inputs:
        """Return what the network reads for these words."""
        raise NotImplementedError

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply the top-k and nucleus filters of transformers: removed logits become -inf; 0 turns either off."""
        return keep_nucleus(keep_top_k(logits, top_k), top_p)

    def rows(self, inputs: Inputs) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"] | None]:
        """Return the number of each image's condition, and which images have none.

        Raises:
            UserError: the inputs are of another kind than the model reads.
        """
        raise NotImplementedError

    def condition(
        self, inputs: Inputs, numbers: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Tensor, Bool[Tensor, "R P"] | None]:
        """Return the conditions with these numbers as the network reads them, and which positions are not padding.

        Where `null` is True, the condition is the unconditional one.
        """
        raise NotImplementedError

    def with_network(self, network: nn.Module) -> "NextToken":
        """Return a copy of this generator with another network; everything else is shared."""
        return with_parts(self, network=network)

    def start(
        self, inputs: Inputs | Request, settings: Settings = PLAIN, reuse: NextTokenState | None = None
    ) -> NextTokenState:
        """Return a new decoding state. The network reads each distinct condition once, for all images that share it.

        If a state to reuse has memory of the right size, its tensors are overwritten in place, and it is returned.
        """
        strengths = self._strengths(settings)
        numbers, null = self.rows_with_guidance(inputs, strengths)
        distinct, place = (2 * numbers + null).unique(return_inverse=True)
        condition, mask = self.condition(inputs_of(inputs), distinct // 2, distinct % 2 == 1)
        length = 1 if mask is None else mask.shape[1]
        narrow = [KeyValueCache(length) for _ in range(self.network.depth)]
        first = self.network(condition, None, mask, caches=narrow, text=self.text)[place]
        block = key_block(place.device)
        total = -(-(length + len(self.units) - 1) // block) * block
        columns, table, guided = None, None, 0
        if mask is not None and not (place.device.type == "cpu" and mask.all()):
            columns = F.pad(mask[place], (0, total - length), value=True)[:, None, None]
        if strengths is not None:
            conditional, unconditional = first.chunk(2)
            first = unconditional + strengths[0] * (conditional - unconditional)
            table = torch.tensor(strengths, device=place.device)
            guided = 1 + max(i for i, strength in enumerate(strengths) if strength != 1)
        state = NextTokenState(
            first=first,
            caches=[KeyValueCache(total) for _ in narrow],
            columns=columns,
            strengths=table,
            guided=guided,
            position=torch.tensor([length], device=place.device),
            block=block,
        )
        if reuse is not None and reuse.fits(state, len(place), narrow[0].keys.dtype):
            state = reuse.renewed(state)
        for cache, short in zip(state.caches, narrow, strict=True):
            cache.append(short.keys[place], short.values[place])
        return state

    def step(self, state: NextTokenState, drawn: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Return guided logits of the next token, given the previous one (None for the first token)."""
        number = state.drawn
        check_step(number, len(self.units), drawn, "token", "one")
        if drawn is None:
            state.drawn = 1
            return state.first
        return self.compute(state, drawn, *state.advance())

    def compute(self, state: NextTokenState, drawn: Int[Tensor, "B 1"], rows: int, end: int) -> Float[Tensor, "B 1 V"]:
        """Return guided logits of the next token, whose step has these numbers of rows and keys.

        Nothing else in Python changes from token to token, and the memory is always the same.
        """
        slot, strength = state.slot(rows, end), None
        if rows > state.batch:
            assert state.strengths is not None
            strength = state.strengths.index_select(0, slot.position - state.caches[0].length + 1)
        tokens = drawn.repeat(rows // state.batch, 1)
        logits = self.network(None, tokens, strength=strength, caches=state.caches, slot=slot, text=self.text)
        state.position += 1
        return logits

    def fork(self, state: NextTokenState, repeats: int) -> NextTokenState:
        """Return a state with each image `repeats` times, to go on in as many ways; copies are adjacent."""
        columns = state.columns
        return replace(
            state,
            first=state.first.repeat_interleave(repeats, dim=0),
            caches=[cache.fork(repeats) for cache in state.caches],
            columns=None if columns is None else columns.repeat_interleave(repeats, dim=0),
            position=state.position.clone(),  # counted in place
        )

    def logits(
        self,
        inputs: Inputs | Request,
        tokens: Int[Tensor, "B L"],
        settings: Settings = PLAIN,
        reduction: Reduction | None = None,
        count: int | None = None,
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of all tokens, each given the true tokens before it, or a function of them.

        If there is a `count`, the tokens and the logits are the first `count`.
        """
        if tokens.shape[1] != len(
            self.units[:count]
        ):  # weights do not depend on the grid, so no other check would notice
            side = self.tokenizer.config.grid_size
            raise UserError(
                f"grid_size: the model draws {side}×{side} tokens per image, but {tokens.shape[1]} are given; "
                "load it with the grid size of these images"
            )
        strengths = self._strengths(settings)
        numbers, null = self.rows_with_guidance(inputs, strengths)
        condition, mask = self.condition(inputs_of(inputs), numbers, null)
        read = tokens[:, :-1]
        if strengths is None:
            return self.network(condition, read, mask, reduction=reduction, text=self.text)
        strength = torch.tensor(strengths[:count], device=tokens.device)[:, None]
        return self.network(condition, read.repeat(2, 1), mask, strength, reduction=reduction)

    def decode(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens to images in [0, 1]."""
        return self.tokenizer.decode(tokens)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens; their size must be that of the tokenizer."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    def _strengths(self, settings: Settings) -> tuple[float, ...] | None:
        """Return the strength s of guidance for each token, 1 after the interval; None if no token is guided."""
        if settings.guidance is None:
            return None
        strengths = settings.at("guidance", len(self.units))
        if self.guidance_interval >= 0:
            strengths = tuple(s if i <= self.guidance_interval + 1 else 1.0 for i, s in enumerate(strengths))
        return None if all(strength == 1 for strength in strengths) else strengths

    def rows_with_guidance(
        self, inputs: Inputs | Request, strengths: tuple[float, ...] | None
    ) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """Return numbers of conditions, and which rows are unconditional: with guidance, the entire second half.

        Rows with the same number and the same `null` are read once.
        """
        numbers, null = self.rows(inputs_of(inputs))
        null = torch.zeros_like(numbers, dtype=torch.bool) if null is None else null
        if strengths is None:
            return numbers, null
        return numbers.repeat(2), torch.cat([null, torch.ones_like(null)])
