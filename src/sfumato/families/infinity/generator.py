"""Infinity as a generator: guided logits of bits from captions and drawn scales, and images (Han et al., 2024)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.infinity.network import BlockCache, Captions, InfinityConfig, InfinityTransformer, Memory
from sfumato.families.infinity.tokenizer import BSQTokenizer
from sfumato.families.shared import (
    caption_inputs,
    check_size,
    check_step,
    check_tokens,
    keep_nucleus,
    keep_top_k,
    with_parts,
)
from sfumato.nn.attention import KeyValueCache
from sfumato.policy import Card
from sfumato.request import Inputs, Request, TextInputs, Words
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import CaptionReader


@dataclass(kw_only=True)
class InfinityState:
    """State of decoding. With guidance there are R = 2B rows: B conditional ones, then their unconditional copies."""

    scale: int
    """number of scales whose logits have been computed"""
    memory: Memory
    features: Float[Tensor, "B d h w"]
    """accumulated feature map of the scales drawn so far"""
    strengths: Float[Tensor, " S"] | None
    """strength of guidance at each scale; None without guidance"""


class Infinity(nn.Module):
    """A bitwise next-scale generator: a trainable transformer and its frozen tokenizer.

    Its tokens are bits: a unit is the h·w·D bits of a scale, and the vocabulary has two tokens, 0 and 1. With guidance
    s, the logits are unconditional + s·(conditional - unconditional), in sampling and in scoring; a list sets s for
    each scale. At s = 1 they are the conditional logits; if all are 1, the unconditional half is not computed. Without
    a condition, the model reads learned features, as many as the caption has tokens.
    """

    vocabulary = 2
    """number of values of a token"""
    reduces_logits = True
    scores_prefixes = True
    decodes_prefixes = True

    def __init__(self, config: InfinityConfig, tokenizer: BSQTokenizer, card: Card | None = None):
        super().__init__()
        self.config = config
        self.card = card or Card(family="infinity")
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.network = InfinityTransformer(config, shape.scales, shape.bits)
        self.units = tuple(count * shape.bits for count in self.network.counts)
        self.reader = CaptionReader(config.text_encoder, config.num_caption_tokens, config.caption_width, clean=False)

    def with_network(self, network: nn.Module) -> "Infinity":
        """Return a copy of this generator with another network; everything else is shared."""
        return with_parts(self, network=network)

    def inputs(self, words: Words) -> TextInputs:
        """Return the features of the captions; equal captions are encoded once."""
        return self.reader.read(words.captions, next(self.network.parameters()).device)

    def start(self, inputs: TextInputs | Request, settings: Settings = PLAIN) -> InfinityState:
        """Return a new decoding state for these captions."""
        strengths, shape = self._strengths(settings), self.tokenizer.config
        captions = self._captions(inputs, strengths)
        device = captions.place.device
        caches = [BlockCache(KeyValueCache(sum(self.network.counts))) for _ in range(self.config.depth)]
        return InfinityState(
            scale=0,
            memory=Memory(caches, captions),
            features=torch.zeros(len(inputs), shape.latent_channels, *shape.sizes[-1], device=device),
            strengths=None if strengths is None else torch.tensor(strengths, device=device),
        )

    def step(self, state: InfinityState, drawn: Int[Tensor, "B u"] | None) -> Float[Tensor, "B v 2"]:
        """Return guided logits of the next scale, given the bits of the previous one (None for the first scale)."""
        scale, codes = state.scale, None
        check_step(scale, len(self.units), drawn, "scale", "bits")
        if drawn is not None:
            state.features = state.features + self.tokenizer.upsample(scale - 1, drawn)
            codes = self.tokenizer.downsample(scale, state.features)
        state.scale += 1
        strength = None if state.strengths is None else state.strengths[scale]
        return _by_bit(self.network(state.memory.captions, codes, state.memory, strength))

    def fork(self, state: InfinityState, repeats: int) -> InfinityState:
        """Return a state with each image `repeats` times, to go on in as many ways; copies are adjacent."""
        return replace(
            state, memory=state.memory.fork(repeats), features=state.features.repeat_interleave(repeats, dim=0)
        )

    def logits(
        self,
        inputs: TextInputs | Request,
        tokens: Int[Tensor, "B L"],
        settings: Settings = PLAIN,
        reduction: Reduction | None = None,
        count: int | None = None,
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of all bits, given the true bits of the coarser scales, or a function of them.

        If there is a `count`, the tokens and the logits are those of the first `count` scales.
        """
        units = self.units[:count]
        check_tokens(tokens, units)
        strengths, strength = self._strengths(settings), None
        if strengths is not None:
            levels = self.network.levels[: sum(self.network.counts[:count])]
            strength = torch.tensor(strengths, device=tokens.device)[levels, None]
        codes = self._codes(tokens.split(units, dim=1))
        captions, bits = self._captions(inputs, strengths), self.tokenizer.config.bits
        if reduction is None:
            return _by_bit(self.network(captions, codes, strength=strength))
        of_tokens = _for_tokens(reduction, bits)
        return self.network(captions, codes, strength=strength, reduction=of_tokens).flatten(1, 2)

    def decode(self, tokens: Int[Tensor, "B L"], count: int | None = None) -> Float[Tensor, "B 3 H W"]:
        """Decode bits to images in [0, 1].

        If there is a `count`, the bits are those of the first `count` scales; the images are coarse.
        """
        scales = tokens.split(self.units[:count], dim=1)
        parts = [self.tokenizer.upsample(scale, bits) for scale, bits in enumerate(scales)]
        return self.tokenizer.reconstruct(torch.stack(parts).sum(0))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as bits; their size must be that of the tokenizer."""
        check_size(images, *self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N 2"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N 2"]:
        """Apply the published top-k and nucleus filter to each bit: removed logits become -inf; 0 turns either off.

        A bit whose less likely value has a probability of at most 1 - top_p gets the other value.
        """
        return keep_nucleus(keep_top_k(logits, top_k), top_p)

    def _strengths(self, settings: Settings) -> tuple[float, ...] | None:
        """Return the strength s of guidance for each scale; None if no scale is guided."""
        if settings.guidance is None:
            return None
        strengths = settings.at("guidance", len(self.units))
        return None if all(strength == 1 for strength in strengths) else strengths

    def _captions(self, inputs: Inputs | Request, strengths: tuple[float, ...] | None) -> Captions:
        """Return what the network reads; with guidance, all rows a second time without condition."""
        asked = caption_inputs(inputs, TextInputs)
        text, longest = asked.captions, self.config.num_caption_tokens
        if text.features.shape[1] > longest or text.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features have shape {tuple(text.features.shape)}, but the model reads at most {longest} "
                f"tokens of width {self.config.caption_width}; use the text encoder {self.config.text_encoder!r}"
            )
        rows = asked.rows
        null = torch.zeros_like(rows, dtype=torch.bool) if asked.null is None else asked.null
        if strengths is not None:
            rows, null = rows.repeat(2), torch.cat([null, torch.ones_like(null)])
        distinct, place = (2 * rows + null).unique(return_inverse=True)
        number, mask = distinct // 2, text.mask[distinct // 2]
        padded = not (place.device.type == "cpu" and bool(mask.all()))
        return Captions(
            features=text.features[number],
            mask=mask[:, None, None] if padded else None,
            lengths=mask.sum(1),
            null=distinct % 2 == 1,
            place=place,
        )

    def _codes(self, units: tuple[Tensor, ...]) -> Float[Tensor, "B T D"] | None:
        """Return the teacher-forcing input: for each scale except the first, the feature map so far at its size. None
        if there is only the first."""
        features, codes = None, []
        for scale, bits in enumerate(units[:-1]):
            added = self.tokenizer.upsample(scale, bits)
            features = added if features is None else features + added
            codes.append(self.tokenizer.downsample(scale + 1, features))
        return torch.cat(codes, dim=1) if codes else None


def _by_bit(logits: Float[Tensor, "B T D2"]) -> Float[Tensor, "B N 2"]:
    """Return the logits of 0 and 1 of each bit; those of a bit are adjacent."""
    return logits.unflatten(2, (-1, 2)).flatten(1, 2)


def _for_tokens(reduction: Reduction, bits: int) -> Reduction:
    """Return a function of the logits of tokens, (B, t, bits) or (B, t, bits, F), that applies one of those of bits."""

    def function(logits: Tensor, span: slice) -> Tensor:
        values = reduction.function(_by_bit(logits), slice(span.start * bits, span.stop * bits))
        return values.unflatten(1, (-1, bits))

    return Reduction(function, max(1, reduction.positions // bits))
