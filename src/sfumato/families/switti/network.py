"""Switti: a transformer that generates an image scale by scale from a caption (Voronov et al., 2024).

The tokens of a scale are drawn in parallel. In Switti they see only each other and the caption; what the coarser scales
have drawn reaches them through their inputs, the feature map so far. In Switti-AR they also see the tokens of all
coarser scales. The model is exactly as published, so that released weights load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.shared import check_heads, check_sizes
from sfumato.nn.attention import KeyValueCache, Span, attend, causal_spans, separate_spans
from sfumato.nn.chunks import reduced
from sfumato.nn.linear import Linear
from sfumato.nn.rotary import rotate

CROP = (512.0, 512.0, 0.0, 0.0)
"""Height, width, top and left in pixels of an image that is not cropped: the published sampler's, at all sizes."""
QUERY_KEY_EPS = 1e-6
"""Epsilon of the norms of queries and keys, which is fixed in the published code."""


@dataclass(frozen=True, kw_only=True)
class SwittiConfig:
    """Shape of a Switti transformer; scales, vocabulary and code width come from the tokenizer."""

    depth: int = 30
    """number of blocks"""
    width: int = 1920
    """width of the residual stream"""
    num_heads: int = 30
    """number of attention heads"""
    causal: bool = False
    """let tokens attend to all coarser scales, as in Switti-AR, and not only to their own scale"""
    crop_condition: bool = True
    """whether the network reads how its training images were cropped; when drawing, they are not"""
    caption_width: int = 2048
    """width of the text features: those of both text encoders, side by side"""
    pooled_width: int = 1280
    """number of the last features of a caption's last token that stand for the whole caption"""
    num_caption_tokens: int = 77
    """maximum length of a caption in text tokens"""
    text_encoder: str = "openai/clip-vit-large-patch14+laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
    """text encoders for the captions: CLIP models by hub id or path, joined with a plus sign"""
    rope_base: float = 10000.0
    """base of the rotary frequencies"""
    rope_extent: float = 128.0
    """position of the last row and column, in every scale"""
    norm_eps: float = 1e-6
    """epsilon of the RMS norms, and of the layer norm before the head"""

    def __post_init__(self):
        check_sizes(self)
        check_heads(self, 4)
        if self.crop_condition and self.width % 8:
            raise UserError(f"width: {self.width} is not a multiple of 8, as the crop condition needs; give a multiple")
        if self.pooled_width > self.caption_width:
            raise UserError(
                f"pooled_width: {self.pooled_width} is more than caption_width, {self.caption_width}; give at most that"
            )

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the gated feed-forward network."""
        return int(self.width * 8 / 3)


@dataclass
class BlockCache:
    """What a block keeps while an image is drawn."""

    attention: KeyValueCache | None = None
    """keys and values of the tokens; None if they attend to their own scale alone"""
    modulation: Float[Tensor, "R 6 C"] | None = None
    """gates, scales and shifts, which are the same at all scales"""
    text: tuple[Float[Tensor, "R H P d"], Float[Tensor, "R H P d"]] | None = None
    """keys and values of the caption"""

    def keep(self, rows: int) -> None:
        """Keep only the first `rows` rows."""
        if self.attention is not None:
            self.attention.keep(rows)
        if self.modulation is not None and self.text is not None:
            keys, values = self.text
            self.modulation, self.text = self.modulation[:rows], (keys[:rows], values[:rows])

    def fork(self, repeats: int) -> "BlockCache":
        """Return a copy with each row `repeats` times; copies are adjacent."""
        assert self.modulation is not None
        assert self.text is not None
        keys, values = (part.repeat_interleave(repeats, dim=0) for part in self.text)
        return BlockCache(
            attention=None if self.attention is None else self.attention.fork(repeats),
            modulation=self.modulation.repeat_interleave(repeats, dim=0),
            text=(keys, values),
        )


@dataclass(frozen=True)
class Text:
    """What the network reads of the captions of R rows."""

    features: Float[Tensor, "R P W"]
    """one vector per text token"""
    mask: Bool[Tensor, "R P"]
    """True for text tokens, False for padding"""
    pooled: Float[Tensor, "R w"]
    """one vector for the whole caption"""

    def __getitem__(self, rows: slice) -> "Text":
        return Text(self.features[rows], self.mask[rows], self.pooled[rows])

    def fork(self, repeats: int) -> "Text":
        """Return a copy with each row `repeats` times; copies are adjacent."""
        features, mask, pooled = self.features, self.mask, self.pooled
        return Text(*(part.repeat_interleave(repeats, dim=0) for part in (features, mask, pooled)))


def rotation_table(scales: Sequence[int], head_width: int, base: float, extent: float) -> Float[Tensor, "L d2 2"]:
    """Return cosines and sines of the two-dimensional rotary embedding, for all scales in order.

    The first half of a head's pairs rotates with the column, the second half with the row. In every scale, positions
    go from 0 to `extent`, so that the same place in the image has the same position.
    """
    pairs = head_width // 4
    frequencies = base ** (-torch.arange(pairs, device="cpu") / pairs)
    parts = []
    for side in scales:
        places = torch.arange(side, device="cpu") * (extent / max(1, side - 1))
        angles = torch.outer(places, frequencies)  # (side, d / 4)
        columns, rows = angles[None].expand(side, -1, -1), angles[:, None].expand(-1, side, -1)
        parts.append(torch.cat([columns, rows], dim=-1).flatten(0, 1))
    table = torch.cat(parts)
    return torch.stack([table.cos(), table.sin()], dim=-1)


def fourier_features(values: Float[Tensor, "B N"], frequencies: Float[Tensor, " F"]) -> Float[Tensor, "B D"]:
    """Embed each number as the sines, then the cosines, of its products with 2π times the frequencies: D = 2·N·F."""
    phases = values[..., None] * frequencies * 2 * torch.pi  # in this order: other orders round by up to 1e-3
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions; queries and keys are normalized over all heads together."""

    def __init__(self, config: SwittiConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.softmax_scale = (config.width // config.num_heads) ** -0.5
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Float[Tensor, "T d2 2"],
        spans: Sequence[Span],
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "R T C"]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key = (rotate(split(normed(part), self.num_heads), rotation) for part in (query, key))
        # Under autocast the norm returns float32, and float32 keys would take twice the memory.
        query, key = (part.type_as(value).transpose(1, 2) for part in (query, key))
        value = split(value, self.num_heads).transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        if spans:
            out = attend(query, key, value, spans, self.softmax_scale)
        else:
            out = F.scaled_dot_product_attention(query, key, value, scale=self.softmax_scale)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention to the caption, without positions; queries and keys are normalized as in self-attention."""

    def __init__(self, config: SwittiConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.softmax_scale = (config.width // config.num_heads) ** -0.5
        self.query = Linear(config.width, config.width)
        self.key_value = Linear(config.caption_width, 2 * config.width)
        self.proj = Linear(config.width, config.width)

    def read(self, text: Float[Tensor, "R P W"]) -> tuple[Float[Tensor, "R H P d"], Float[Tensor, "R H P d"]]:
        """Return keys and values of captions."""
        key, value = self.key_value(text).chunk(2, dim=-1)
        key = normed(key).type_as(value)
        return split(key, self.num_heads).transpose(1, 2), split(value, self.num_heads).transpose(1, 2)

    def forward(
        self, x: Float[Tensor, "R T C"], text: tuple[Tensor, Tensor], mask: Bool[Tensor, "R P"]
    ) -> Float[Tensor, "R T C"]:
        query, (key, value) = normed(self.query(x)).type_as(text[1]), text
        query = split(query, self.num_heads).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None], scale=self.softmax_scale)
        return self.proj(out.transpose(1, 2).flatten(2))


def normed(x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
    """Apply layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=QUERY_KEY_EPS)


def split(x: Float[Tensor, "R T C"], num_heads: int) -> Float[Tensor, "R T H d"]:
    """Divide channels into heads."""
    return x.unflatten(2, (num_heads, -1))


class Block(nn.Module):
    """Transformer block: self-attention, attention to the caption, and a gated feed-forward network (SwiGLU).

    Each has an RMS norm before and after it. The first and the last are scaled, shifted and gated by the condition.
    """

    def __init__(self, config: SwittiConfig):
        super().__init__()
        width, hidden = config.width, config.feed_forward_width
        norms = (nn.RMSNorm(width, eps=config.norm_eps) for _ in range(6))
        self.attention_norm, self.attention_out_norm, self.cross_norm, self.cross_out_norm, *rest = norms
        self.feed_forward_norm, self.feed_forward_out_norm = rest
        self.text_norm = nn.RMSNorm(config.caption_width, eps=config.norm_eps)
        self.attention, self.cross = SelfAttention(config), CrossAttention(config)
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.crop_scale = nn.Parameter(torch.zeros(width)) if config.crop_condition else None

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        condition: Float[Tensor, "R C"],
        crop: Float[Tensor, "1 C"] | None,
        features: Float[Tensor, "R P W"],
        mask: Bool[Tensor, "R P"],
        rotation: Float[Tensor, "T d2 2"],
        spans: Sequence[Span] = (),
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "R T C"]:
        keys = None if cache is None else cache.attention
        if cache is None or cache.text is None or cache.modulation is None:
            if self.crop_scale is not None:
                assert crop is not None
                condition = condition + self.crop_scale * crop
            modulation = self.modulation(F.silu(condition)).unflatten(1, (6, -1))
            text = self.cross.read(self.text_norm(features))
            if cache is not None:
                cache.modulation, cache.text = modulation, text
        else:
            modulation, text = cache.modulation, cache.text
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        hidden = torch.addcmul(shift1, self.attention_norm(x), 1 + scale1)
        # The norms after the layers compute in the type of the residual stream, float32 even under autocast.
        hidden = self.attention(hidden, rotation, spans, keys).type_as(x)
        x = torch.addcmul(x, gate1, self.attention_out_norm(hidden))
        x = x + self.cross_out_norm(self.cross(self.cross_norm(x), text, mask).type_as(x))
        hidden = torch.addcmul(shift2, self.feed_forward_norm(x), 1 + scale2)
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        hidden = self.down(F.silu(gate) * up).type_as(x)
        return torch.addcmul(x, gate2, self.feed_forward_out_norm(hidden))


class SwittiTransformer(nn.Module):
    """The network: from captions and the codes of the previous scales to logits."""

    levels: Tensor
    rotation: Tensor
    crop_frequencies: Tensor

    def __init__(self, config: SwittiConfig, scales: Sequence[int], vocab_size: int, latent_channels: int):
        super().__init__()
        self.config = config
        width = config.width
        self.units = tuple(side * side for side in scales)
        self.start_position = nn.Parameter(torch.empty(self.units[0], width))
        self.level_embedding = nn.Embedding(len(self.units), width)
        self.code_projection = nn.Linear(latent_channels, width)
        self.caption_projection = nn.Linear(config.pooled_width, width)
        if config.crop_condition:
            self.crop_projection = nn.Linear(width, width)
            self.register_buffer("crop_frequencies", torch.randn(width // 8))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = Linear(width, vocab_size)
        # Always on the CPU, so that a model built on "meta" is complete once its weights are loaded.
        levels = torch.arange(len(self.units), device="cpu").repeat_interleave(torch.tensor(self.units, device="cpu"))
        rotation = rotation_table(scales, width // config.num_heads, config.rope_base, config.rope_extent)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("rotation", rotation, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as published: std 0.02, smaller for output projections, gates and head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.level_embedding.weight, std=0.02)
        nn.init.trunc_normal_(self.start_position, std=(1 / self.config.width / 3) ** 0.5)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_modulation.weight.mul_(0.5)
            gates = 2 * self.config.width
            for block in self.blocks:
                assert isinstance(block, Block)
                block.attention.proj.weight.div_((2 * self.config.depth) ** 0.5)
                block.cross.proj.weight.div_((2 * self.config.depth) ** 0.5)
                block.modulation.weight[gates:].mul_(0.5)
                block.modulation.weight[:gates].mul_(1e-5)

    def spans(self, count: int) -> list[Span]:
        """Return the parts of the first `count` scales, with what they attend to."""
        units = self.units[:count]
        if not self.config.causal:
            return separate_spans(units)
        coarse = self.levels[: sum(units[:-2])]
        return causal_spans(units, coarse[:, None] >= coarse)

    def forward(
        self,
        text: Text,
        codes: Float[Tensor, "B T Z"] | None,
        scale: int | None = None,
        caches: Sequence[BlockCache] | None = None,
        strength: Float[Tensor, "N 1"] | None = None,
        reduction: Reduction | None = None,
    ) -> Float[Tensor, "B L *V"]:
        """Return logits of scales.

        Args:
            text: captions of B rows; with guidance, followed by B unconditional ones.
            codes: inputs, one for each position of the scales after the first; None for the first scale, whose input is
                the caption.
            scale: number of the scale that `codes` and the logits belong to, with `caches`; by default both are those
                of all scales or of the first ones, teacher-forced.
            caches: what the blocks keep while an image is drawn.
            strength: strength of guidance at the first N positions; the others are not guided. None without guidance.
            reduction: function of the logits to return instead of them.
        """
        batch = len(text.mask) // (1 if strength is None else 2)
        length = (0 if codes is None else codes.shape[1]) + (0 if scale else self.units[0])
        if strength is None or len(strength) == length:
            x = self._read(text, codes, scale, caches)
            conditional, unconditional = x[:batch], x[batch:]
        else:  # the unconditional half needs only the guided scales, which do not see the later ones
            conditional = self._read(text[:batch], codes)
            assert codes is not None
            unconditional = self._read(text[batch:], codes[:, : len(strength) - self.units[0]])
        # The head is affine, so guidance is applied to its input instead of the logits, at half the cost.
        x = conditional
        if strength is not None:
            guided = (1 + strength) * conditional[:, : len(strength)] - strength * unconditional
            x = torch.cat([guided, conditional[:, len(strength) :]], dim=1)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x) if reduction is None else reduced(self.head, x, reduction)

    def _read(
        self,
        text: Text,
        codes: Float[Tensor, "B T Z"] | None,
        scale: int | None = None,
        caches: Sequence[BlockCache] | None = None,
    ) -> Float[Tensor, "R N C"]:
        """Return the input of the head, in float32 even under autocast."""
        ends = (0, *accumulate(self.units))
        first, crop = ends[scale or 0], None
        with torch.autocast(text.mask.device.type, enabled=False):  # as in the published training code
            condition = self.caption_projection(text.pooled)
            parts = [] if scale else [condition[:, None] + self.start_position]
            if codes is not None:
                parts.append(self.code_projection(codes).repeat(len(condition) // len(codes), 1, 1))
            x = torch.cat(parts, dim=1)
            place = slice(first, first + x.shape[1])
            x = x + self.level_embedding(self.levels[place])
            if self.config.crop_condition:
                # Filled on the device: a tensor of these numbers would be copied there at every scale.
                values = torch.stack([torch.full((1,), value, device=x.device) for value in CROP], dim=-1)
                crop = self.crop_projection(fourier_features(values, self.crop_frequencies))
        spans = self.spans(ends.index(x.shape[1])) if scale is None else ()
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, condition, crop, text.features, text.mask, self.rotation[place], spans, cache)
        with torch.autocast(x.device.type, enabled=False):
            # The crop does not modulate here.
            scales, shifts = self.head_modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
            return torch.addcmul(shifts, F.layer_norm(x.float(), x.shape[-1:], eps=self.config.norm_eps), 1 + scales)
