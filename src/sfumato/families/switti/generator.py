"""Switti as a generator: guided logits from captions and drawn scales, and images (Voronov et al., 2024)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.shared import (
    caption_inputs,
    check_size,
    check_step,
    check_tokens,
    keep_nucleus,
    keep_top_k,
    ramped_guidance,
    with_parts,
)
from sfumato.families.switti.network import BlockCache, SwittiConfig, SwittiTransformer, Text
from sfumato.families.vqvae import MultiScaleVQVAE
from sfumato.nn.attention import KeyValueCache
from sfumato.policy import Card
from sfumato.request import Request, TextInputs, Words
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import CaptionReader


@dataclass(kw_only=True)
class SwittiState:
    """State of decoding. With guidance there are R = 2B rows, B conditional ones and B of the empty caption, until the
    last guided scale; then only the conditional ones are left."""

    scale: int
    """number of scales whose logits have been computed"""
    text: Text
    caches: list[BlockCache]
    features: Float[Tensor, "B Z h w"]
    """accumulated feature map of the scales drawn so far"""
    strengths: tuple[float, ...]
    """strength of guidance at each scale, to the last guided one"""


class Switti(nn.Module):
    """A next-scale generator that reads captions: a trainable transformer and its frozen tokenizer.

    With guidance g, the logits are (1 + t)·conditional - t·unconditional, in sampling and in scoring, where the
    unconditional ones are those of the empty caption. As in VAR, a single number g is ramped linearly: t = g·i/(S - 1)
    at scale i of S. A list of S numbers sets t directly; from the last number above 0 on, the unconditional half is not
    computed. This is how the published sampler switches guidance off, and its `last_scale_temp` is the temperature of
    these scales. Its "more smooth" mode mixes codes, which is not a policy over tokens; it is not offered.
    """

    reduces_logits = True
    scores_prefixes = True
    decodes_prefixes = True

    def __init__(self, config: SwittiConfig, tokenizer: MultiScaleVQVAE, card: Card | None = None):
        super().__init__()
        self.config = config
        self.card = card or Card(family="switti")
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.network = SwittiTransformer(config, shape.scales, shape.vocab_size, shape.latent_channels)
        self.units = self.network.units
        # The unconditional case is a caption, which the text encoders read like any other.
        self.reader = CaptionReader(config.text_encoder, config.num_caption_tokens, config.caption_width, null="")

    def with_network(self, network: nn.Module) -> "Switti":
        """Return a copy of this generator with another network; everything else is shared."""
        return with_parts(self, network=network)

    def inputs(self, words: Words) -> TextInputs:
        """Return the features of the captions and of the empty caption; equal captions are encoded once."""
        return self.reader.read(words.captions, next(self.network.parameters()).device)

    def start(self, inputs: TextInputs | Request, settings: Settings = PLAIN) -> SwittiState:
        """Return a new decoding state for these captions."""
        strengths, shape = self._strengths(settings), self.tokenizer.config
        text, side = self._text(inputs, guided=bool(strengths)), shape.scales[-1]
        length = sum(self.units)
        return SwittiState(
            scale=0,
            text=text,
            caches=[
                BlockCache(KeyValueCache(length) if self.config.causal else None) for _ in range(self.config.depth)
            ],
            features=torch.zeros(len(inputs), shape.latent_channels, side, side, device=text.mask.device),
            strengths=strengths,
        )

    def step(self, state: SwittiState, drawn: Tensor | None) -> Float[Tensor, "B u V"]:
        """Return guided logits of the next scale.

        `drawn` holds the tokens of the previous scale, as indices (B, u) or as distributions over the vocabulary
        (B, u, V), whose mean codes are used; None for the first scale.
        """
        quantizer, scale, codes, batch = self.tokenizer.quantizer, state.scale, None, len(state.features)
        check_step(scale, len(self.units), drawn, "scale", "tokens")
        if scale and scale == len(state.strengths):
            state.text = state.text[:batch]
            for cache in state.caches:
                cache.keep(batch)
        if drawn is not None:
            state.features = state.features + quantizer.upsample(scale - 1, quantizer.embed(drawn))
            codes = quantizer.downsample(scale, state.features).flatten(2).transpose(1, 2)
        strength = None
        if scale < len(state.strengths):
            strength = torch.full((self.units[scale], 1), state.strengths[scale], device=state.features.device)
        state.scale += 1
        return self.network(state.text, codes, scale, state.caches, strength)

    def fork(self, state: SwittiState, repeats: int) -> SwittiState:
        """Return a state with each image `repeats` times, to go on in as many ways; copies are adjacent."""
        return replace(
            state,
            text=state.text.fork(repeats),
            caches=[cache.fork(repeats) for cache in state.caches],
            features=state.features.repeat_interleave(repeats, dim=0),
        )

    def logits(
        self,
        inputs: TextInputs | Request,
        tokens: Int[Tensor, "B L"],
        settings: Settings = PLAIN,
        reduction: Reduction | None = None,
        count: int | None = None,
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of all scales, given the true tokens of the coarser scales, or a function of them.

        If there is a `count`, the tokens and the logits are those of the first `count` scales.
        """
        units = self.units[:count]
        check_tokens(tokens, units)
        strengths = self._strengths(settings)[: len(units)]
        text = self._text(inputs, guided=bool(strengths))
        codes = self.tokenizer.quantizer.codes_before(tokens.split(units, dim=1))
        strength = None
        if strengths:
            per_token = [value for value, unit in zip(strengths, units, strict=False) for _ in range(unit)]
            strength = torch.tensor(per_token, device=tokens.device)[:, None]
        return self.network(text, codes, strength=strength, reduction=reduction)

    def decode(self, tokens: Tensor, count: int | None = None) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens (B, L), or distributions over the vocabulary (B, L, V), to images in [0, 1].

        If there is a `count`, the tokens are those of the first `count` scales; the images are coarse.
        """
        scales = tokens.split(self.units[:count], dim=1)
        return self.tokenizer.reconstruct(self.tokenizer.quantizer.accumulate(scales))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens; their size must be that of the tokenizer."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply the top-k and nucleus filter, which is VAR's: removed logits become -inf; 0 turns either filter off."""
        return keep_nucleus(keep_top_k(logits, top_k), top_p)

    def _strengths(self, settings: Settings) -> tuple[float, ...]:
        """Return the strength t of guidance at each scale, to the last guided one; none without guidance."""
        strengths = ramped_guidance(settings, len(self.units)) or ()
        return strengths[: 1 + max((scale for scale, strength in enumerate(strengths) if strength), default=-1)]

    def _text(self, inputs: TextInputs | Request, guided: bool) -> Text:
        """Return what the network reads of the captions; with guidance, followed by as many empty captions."""
        asked = caption_inputs(inputs, TextInputs)
        table, rows = asked.captions, asked.rows
        if table.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features are {table.features.shape[2]} wide, but the model reads {self.config.caption_width}; "
                f"use the text encoder {self.config.text_encoder!r}"
            )
        if guided or asked.null is not None:
            if asked.null_row is None:
                raise UserError("inputs: guidance needs the features of the empty caption; use the generator's inputs")
            empty = torch.full_like(rows, asked.null_row)
            rows = rows if asked.null is None else torch.where(asked.null, empty, rows)
            rows = torch.cat([rows, empty]) if guided else rows
        features = table.features[rows].float()
        # A caption ends with the end-of-sequence token, in which the last encoder sums it up.
        return Text(features, table.mask[rows], features[:, -1, -self.config.pooled_width :])
