"""LlamaGen as a generator: guided logits from classes or captions and drawn tokens, and images (Sun et al., 2024)."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer
from sfumato.families.llamagen.tokenizer import VQModel
from sfumato.families.shared import check_size, class_inputs, keep_top_k, number_classes
from sfumato.nn.attention import KeyValueCache, Slot, key_block
from sfumato.policy import Card, Reduction
from sfumato.request import ClassInputs, Request, TextInputs, Words, inputs_of
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import CaptionReader

LlamaGenInputs = ClassInputs | TextInputs
"""Inputs of the class-conditional and of the text-conditional models."""


@dataclass(kw_only=True)
class LlamaGenState:
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

    def fits(self, fresh: "LlamaGenState", rows: int, dtype: torch.dtype) -> bool:
        """Return whether the memory of this state suits another one of so many rows, with caches of this type."""
        cache, tensors = self.caches[0], (self.columns, self.strengths)
        shapes = [None if tensor is None else tensor.shape for tensor in tensors]
        others = [None if tensor is None else tensor.shape for tensor in (fresh.columns, fresh.strengths)]
        numbers = (self.batch, self.guided, self.block, cache.capacity, len(cache.keys), cache.keys.dtype)
        return shapes == others and numbers == (
            fresh.batch, fresh.guided, fresh.block, fresh.caches[0].capacity, rows, dtype
        )  # fmt: skip

    def renewed(self, fresh: "LlamaGenState") -> "LlamaGenState":
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


class LlamaGen(nn.Module):
    """A next-token generator: a trainable transformer and its frozen tokenizer.

    With guidance s, the logits are unconditional + s·(conditional - unconditional), in sampling and in scoring. At
    s = 1 they are the conditional logits, and the unconditional half is not computed. A list sets s for each token.
    `guidance_interval` is the parameter of the published sampler: -1 guides all tokens, i >= 0 only the first i + 2.
    """

    reader: CaptionReader
    reduces_logits = True
    scores_prefixes = True

    def __init__(
        self, config: LlamaGenConfig, tokenizer: VQModel, card: Card | None = None, guidance_interval: int = -1
    ):
        super().__init__()
        self.config = config
        self.card = number_classes(card or Card(family="llamagen"), config.num_classes)
        self.guidance_interval = guidance_interval
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.network = LlamaGenTransformer(config, shape.grid_size, shape.vocab_size)
        self.units: tuple[int, ...] = (1,) * shape.grid_size**2
        if config.caption_width:  # class-conditional models lack this attribute, so they are not `ReadsCaptions`
            self.reader = CaptionReader(config.text_encoder, config.num_caption_tokens, config.caption_width)

    def with_network(self, network: nn.Module) -> "LlamaGen":
        """Return a copy of this generator with another network; everything else is shared."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "network": network}
        return twin

    def inputs(self, words: Words) -> LlamaGenInputs:
        """Return the class numbers, or the features of the captions; equal captions are encoded once."""
        if not self.config.caption_width:
            return class_inputs(words, self.config.num_classes)
        return self.reader.read(words.captions, next(self.network.parameters()).device)

    def start(
        self, inputs: LlamaGenInputs | Request, settings: Settings = PLAIN, reuse: LlamaGenState | None = None
    ) -> LlamaGenState:
        """Return a new decoding state. The network reads each distinct condition once, for all images that share it.

        If a state to reuse has memory of the right size, its tensors are overwritten in place, and it is returned.
        """
        strengths = self._strengths(settings)
        labels, null = self._rows(inputs, strengths)
        distinct, place = (2 * labels + null).unique(return_inverse=True)
        condition, mask = self._condition(inputs, distinct // 2, distinct % 2 == 1)
        length = 1 if mask is None else mask.shape[1]
        narrow = [KeyValueCache(length) for _ in range(self.config.depth)]
        first = self.network(condition, None, mask, caches=narrow)[place]
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
        state = LlamaGenState(
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

    def step(self, state: LlamaGenState, drawn: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Return guided logits of the next token, given the previous one (None for the first token)."""
        number = state.drawn
        if number == len(self.units):
            raise ValueError(f"step: all {number} tokens are drawn; call start for a new image")
        if (drawn is None) != (number == 0):
            raise ValueError(f"drawn: give None at the first token and the drawn one after it (token {number})")
        if drawn is None:
            state.drawn = 1
            return state.first
        return self.compute(state, drawn, *state.advance())

    def compute(self, state: LlamaGenState, drawn: Int[Tensor, "B 1"], rows: int, end: int) -> Float[Tensor, "B 1 V"]:
        """Return guided logits of the next token, whose step has these numbers of rows and keys.

        Nothing else in Python changes from token to token, and the memory is always the same.
        """
        slot, strength = state.slot(rows, end), None
        if rows > state.batch:
            assert state.strengths is not None
            strength = state.strengths.index_select(0, slot.position - state.caches[0].length + 1)
        tokens = drawn.repeat(rows // state.batch, 1)
        logits = self.network(None, tokens, strength=strength, caches=state.caches, slot=slot)
        state.position += 1
        return logits

    def logits(
        self,
        inputs: LlamaGenInputs | Request,
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
        labels, null = self._rows(inputs, strengths)
        condition, mask = self._condition(inputs, labels, null)
        read = tokens[:, :-1]
        if strengths is None:
            return self.network(condition, read, mask, reduction=reduction)
        strength = torch.tensor(strengths[:count], device=tokens.device)[:, None]
        return self.network(condition, read.repeat(2, 1), mask, strength, reduction=reduction)

    def decode(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens to images in [0, 1]."""
        side = self.tokenizer.config.grid_size
        codes = self.tokenizer.quantizer.embed(tokens)
        return self.tokenizer.reconstruct(codes.transpose(1, 2).unflatten(2, (side, side)))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens; their size must be that of the tokenizer."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply LlamaGen's top-k and nucleus filter: removed logits become -inf; 0 turns either off (as does top_p 1).

        Top-k keeps ties with the k-th token. The nucleus keeps the most likely tokens up to and including the first at
        which their cumulative probability exceeds top_p. VAR's filter excludes this token.
        """
        logits = keep_top_k(logits, top_k)
        if 0 < top_p < 1:
            descending, order = logits.sort(dim=-1, descending=True)
            passed = descending.softmax(-1).cumsum(-1) > top_p
            removed = F.pad(passed[..., :-1], (1, 0), value=False)
            logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
        return logits

    def _strengths(self, settings: Settings) -> tuple[float, ...] | None:
        """Return the strength s of guidance for each token, 1 after the interval; None if no token is guided."""
        if settings.guidance is None:
            return None
        strengths = settings.at("guidance", len(self.units))
        if self.guidance_interval >= 0:
            strengths = tuple(s if i <= self.guidance_interval + 1 else 1.0 for i, s in enumerate(strengths))
        return None if all(strength == 1 for strength in strengths) else strengths

    def _rows(
        self, inputs: LlamaGenInputs | Request, strengths: tuple[float, ...] | None
    ) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """Return class or caption numbers, and which rows are unconditional: with guidance, the entire second half."""
        asked = inputs_of(inputs)
        if isinstance(asked, TextInputs) != bool(self.config.caption_width):
            kind = "captions" if self.config.caption_width else "classes"
            raise UserError(f"inputs: this model reads {kind}, not {type(asked).__name__}")
        assert isinstance(asked, ClassInputs | TextInputs)
        labels = asked.rows if isinstance(asked, TextInputs) else asked.labels
        null = torch.zeros_like(labels, dtype=torch.bool) if asked.null is None else asked.null
        if strengths is not None:
            labels, null = labels.repeat(2), torch.cat([null, torch.ones_like(null)])
        if not self.config.caption_width:
            labels = labels.masked_fill(null, self.config.num_classes)  # the null class
        return labels, null

    def _condition(
        self, inputs: LlamaGenInputs | Request, labels: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Int[Tensor, " R"] | Float[Tensor, "R P W"], Bool[Tensor, "R P"] | None]:
        """Return the classes, or the caption features and which are not padding; a null caption keeps its padding."""
        asked = inputs_of(inputs)
        if not isinstance(asked, TextInputs):
            return labels, None
        text, longest = asked.captions, self.config.num_caption_tokens
        if text.features.shape[1] > longest or text.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features have shape {tuple(text.features.shape)}, but the model reads at most {longest} "
                f"tokens of width {self.config.caption_width}; use the text encoder {self.config.text_encoder!r}"
            )
        unconditional = self.network.null_caption[longest - text.features.shape[1] :]
        features = torch.where(null[:, None, None], unconditional, text.features[labels].type_as(unconditional))
        return features, text.mask[labels]
