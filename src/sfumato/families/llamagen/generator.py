"""LlamaGen as a generator: guided logits from classes or captions and drawn tokens, and images (Sun et al., 2024)."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer, causal_mask
from sfumato.families.llamagen.tokenizer import VQModel
from sfumato.families.shared import check_size, class_inputs, keep_top_k, number_classes
from sfumato.nn.attention import KeyValueCache
from sfumato.policy import Card
from sfumato.request import ClassInputs, Request, TextInputs, Words, inputs_of
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import CaptionReader

LlamaGenInputs = ClassInputs | TextInputs
"""Inputs of the class-conditional and of the text-conditional models."""


@dataclass(kw_only=True)
class LlamaGenState:
    """State of decoding. With guidance there are R = 2B rows: B conditional ones, then their unconditional copies."""

    batch: int
    hidden: Float[Tensor, "R 1 C"]
    """output of the network at the last position of the condition"""
    caches: list[KeyValueCache]
    columns: Bool[Tensor, "R 1 1 T"] | None
    """True for positions that may be attended to; None if all may be"""
    strengths: tuple[float, ...] | None
    """strength of guidance for each token, 1 after the guidance interval; None without guidance"""
    drawn: int = 0
    """number of tokens whose logits have been computed"""


class LlamaGen(nn.Module):
    """A next-token generator: a trainable transformer and its frozen tokenizer.

    With guidance s, the logits are unconditional + s·(conditional - unconditional), in sampling and in scoring. At
    s = 1 they are the conditional logits, and the unconditional half is not computed. A list sets s for each token.
    `guidance_interval` is the parameter of the published sampler: -1 guides all tokens, i >= 0 only the first i + 2.
    """

    reader: CaptionReader

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
            self.reader = CaptionReader(config.text_encoder, config.num_caption_tokens)

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

    def start(self, inputs: LlamaGenInputs | Request, settings: Settings = PLAIN) -> LlamaGenState:
        """Return a new decoding state. The network reads each distinct condition once, for all images that share it."""
        strengths = self._strengths(settings)
        labels, null = self._rows(inputs, strengths)
        distinct, place = (2 * labels + null).unique(return_inverse=True)
        prefix, mask = self._prefix(inputs, distinct // 2, distinct % 2 == 1)
        network, length = self.network, prefix.shape[1]
        narrow = [KeyValueCache(length) for _ in network.blocks]
        seen = None if mask is None else causal_mask(mask, length)
        hidden = network.hidden(prefix, network.positions(length)[:length], seen, narrow)[:, -1:]
        total = length + len(self.units) - 1
        caches = [KeyValueCache(total) for _ in network.blocks]
        for cache, short in zip(caches, narrow, strict=True):
            cache.append(short.keys[place], short.values[place])
        columns = None
        if mask is not None and not bool(mask.all()):
            columns = F.pad(mask[place], (0, total - length), value=True)[:, None, None]
        return LlamaGenState(
            batch=len(inputs), hidden=hidden[place], caches=caches, columns=columns, strengths=strengths
        )

    def step(self, state: LlamaGenState, drawn: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Return guided logits of the next token, given the previous one (None for the first token)."""
        network, number = self.network, state.drawn
        if number == len(self.units):
            raise ValueError(f"step: all {number} tokens are drawn; call start for a new image")
        if (drawn is None) != (number == 0):
            raise ValueError(f"drawn: give None at the first token and the drawn one after it (token {number})")
        # After the guidance interval, only the conditional half is computed.
        guided = state.strengths is not None and any(strength != 1 for strength in state.strengths[number:])
        if drawn is None:
            x = state.hidden
        else:
            rows = 2 * state.batch if guided else state.batch
            if rows < state.caches[0].batch:
                for cache in state.caches:
                    cache.keep(rows)
                state.columns = None if state.columns is None else state.columns[:rows]
            x = network.token_embedding(drawn).repeat(rows // state.batch, 1, 1)
            end = state.caches[0].length + 1
            mask = None if state.columns is None else state.columns[..., :end]
            x = network.hidden(x, network.rotation[number - 1 : number], mask, state.caches)
        state.drawn += 1
        return network.classify(x, state.strengths[number] if guided and state.strengths is not None else None)

    def logits(
        self, inputs: LlamaGenInputs | Request, tokens: Int[Tensor, "B L"], settings: Settings = PLAIN
    ) -> Float[Tensor, "B L V"]:
        """Return guided logits of all tokens, each given the true tokens before it."""
        if tokens.shape[1] != len(self.units):  # weights do not depend on the grid, so no other check would notice
            side = self.tokenizer.config.grid_size
            raise UserError(
                f"grid_size: the model draws {side}×{side} tokens per image, but {tokens.shape[1]} are given; "
                "load it with the grid size of these images"
            )
        strengths = self._strengths(settings)
        labels, null = self._rows(inputs, strengths)
        prefix, mask = self._prefix(inputs, labels, null)
        if strengths is None:
            return self.network(prefix, mask, tokens)
        return self.network(prefix, mask, tokens.repeat(2, 1), torch.tensor(strengths, device=tokens.device)[:, None])

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

    def _prefix(
        self, inputs: LlamaGenInputs | Request, labels: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R P C"], Bool[Tensor, "R P"] | None]:
        """Return the condition as tokens, and which are not padding. A null caption keeps its caption's padding."""
        asked = inputs_of(inputs)
        if not isinstance(asked, TextInputs):
            return self.network.embed_classes(labels), None
        text, longest = asked.captions, self.config.num_caption_tokens
        if text.features.shape[1] > longest or text.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features have shape {tuple(text.features.shape)}, but the model reads at most {longest} "
                f"tokens of width {self.config.caption_width}; use the text encoder {self.config.text_encoder!r}"
            )
        unconditional = self.network.null_caption[longest - text.features.shape[1] :]
        features = torch.where(null[:, None, None], unconditional, text.features[labels].type_as(unconditional))
        return self.network.embed_captions(features), text.mask[labels]
