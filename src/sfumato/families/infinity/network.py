"""Infinity: a transformer that generates an image scale by scale, bit by bit, from a caption (Han et al., 2024).

The tokens of a scale are drawn in parallel, given all coarser scales; the bits of a token are independent, given these.
The caption is read by cross-attention, and its pooled features shift and scale every block. The model is exactly as
published, so that released weights load, but captions of different lengths are padded and masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.infinity.schedules import Scales
from sfumato.families.shared import check_heads, check_sizes
from sfumato.nn.attention import KeyValueCache, Span, attend
from sfumato.nn.chunks import reduced
from sfumato.nn.linear import Linear
from sfumato.nn.rotary import rotate

COARSE = 512
"""Number of positions up to which the coarse scales share one masked call of attention."""


@dataclass(frozen=True, kw_only=True)
class InfinityConfig:
    """Shape of an Infinity transformer; scales and bits come from the tokenizer. The defaults are the 125M's."""

    depth: int = 12
    """number of blocks"""
    width: int = 768
    """width of the residual stream"""
    num_heads: int = 8
    """number of attention heads"""
    feed_forward_width: int = 3072
    """hidden width of the feed-forward network"""
    caption_width: int = 2048
    """width of the text features"""
    num_caption_tokens: int = 512
    """maximum length of a caption in text tokens"""
    text_encoder: str = "google/flan-t5-xl"
    """text encoder for the captions: a bundled one, or a T5 by hub id or path"""
    rotary_grid: tuple[int, int] = (64, 64)
    """height and width of the grid that the rotary positions of all scales are stretched to"""
    num_levels: int = 15
    """number of level embeddings, at least the number of scales"""
    block_chunks: int = 1
    """number of equal groups of blocks in the published names of the tensors; it changes nothing else"""
    norm_eps: float = 1e-6
    """epsilon of the norms"""

    def __post_init__(self):
        check_sizes(self)
        check_heads(self, 4)
        if self.width % self.pooling_heads:
            raise UserError(f"width: {self.width} is not a multiple of the {self.pooling_heads} heads of the pooling")
        if self.depth % self.block_chunks:
            raise UserError(f"block_chunks: {self.block_chunks} does not divide the depth {self.depth}; give a divisor")

    @property
    def pooling_heads(self) -> int:
        """Number of heads that pool a caption: one for each 128 of its features, whatever the width."""
        return max(1, self.caption_width // 128)


class Captions(NamedTuple):
    """What the network reads for R rows: D distinct captions, and the caption of each row."""

    features: Float[Tensor, "D T W"]
    """text features, padded on the left"""
    mask: Bool[Tensor, "D 1 1 T"] | None
    """True for text tokens, False for padding; None if there is no padding"""
    lengths: Int[Tensor, " D"]
    """number of text tokens"""
    null: Bool[Tensor, " D"]
    """True for captions whose features are replaced with as many of the learned ones of no caption"""
    place: Int[Tensor, " R"]
    """number of each row's caption"""


@dataclass
class BlockCache:
    """What a block keeps while an image is drawn."""

    attention: KeyValueCache
    text: tuple[Float[Tensor, "D H T d"], Float[Tensor, "D H T d"]] | None = None
    """keys and values of the captions"""

    def fork(self, repeats: int) -> "BlockCache":
        """Return a copy with each row `repeats` times; copies are adjacent."""
        return BlockCache(self.attention.fork(repeats), self.text)


@dataclass
class Memory:
    """What the network keeps while R rows are drawn."""

    blocks: list[BlockCache]
    captions: Captions
    condition: Float[Tensor, "R C"] | None = None
    """pooled captions; None before the first scale"""

    def fork(self, repeats: int) -> "Memory":
        """Return a copy with each row `repeats` times; copies are adjacent."""
        return Memory(
            blocks=[block.fork(repeats) for block in self.blocks],
            captions=self.captions._replace(place=self.captions.place.repeat_interleave(repeats)),
            condition=None if self.condition is None else self.condition.repeat_interleave(repeats, dim=0),
        )


def rotary_positions(scales: Scales, grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return the row and the column of all positions: those of each scale are stretched to the grid, and rounded.

    Ties are rounded to even. The fractions are exact: with floating-point numbers, two of the published ratios would
    have one wrong position each.
    """
    rows, columns = [], []
    for height, width in scales:
        rows += [round(Fraction(row * grid[0], height)) for row in range(height) for _ in range(width)]
        columns += [round(Fraction(column * grid[1], width)) for column in range(width)] * height
    return rows, columns


def rotation_table(scales: Scales, grid: tuple[int, int], head_width: int) -> Float[Tensor, "L d2 2"]:
    """Return cosines and sines of the two-dimensional rotary embedding.

    The first half of a head's pairs rotates with the row, the second half with the column.
    """
    half = head_width // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, device="cpu") / half)
    positions = torch.tensor(rotary_positions(scales, grid), device="cpu")
    angles = (positions[..., None] * frequencies).transpose(0, 1).flatten(1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of unit-length queries and keys, with a learned temperature per head and rotary positions;
    keys have no bias."""

    MAX_LOG_SCALE = 4.605170185988092  # log 100: the published clamp of the learned temperature

    def __init__(self, config: InfinityConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((config.num_heads, 1), 4.0).log())
        self.proj = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Float[Tensor, "T d2 2"],
        spans: Sequence[Span],
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "R T C"]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        query, key, value = self.qkv(x).add_(bias).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        query = F.normalize(query.float(), dim=-1) * self.log_scale.clamp_max(self.MAX_LOG_SCALE).exp()
        query, key = rotate(query, rotation), rotate(F.normalize(key.float(), dim=-1), rotation)
        query, key, value = (part.type_as(value).transpose(1, 2) for part in (query, key, value))
        if cache is None:
            out = attend(query, key, value, spans, 1.0)
        else:
            key, value = cache.append(key, value)
            out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of a caption; keys have no bias."""

    def __init__(self, config: InfinityConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        text: Float[Tensor, "D N C"] | None,
        place: Int[Tensor, " R"],
        mask: Bool[Tensor, "R 1 1 N"] | None,
        cache: BlockCache | None,
    ) -> Float[Tensor, "R T C"]:
        """Return what each row reads in its caption; `text` is None if the cache has its keys and values."""
        if text is None:
            assert cache is not None
            assert cache.text is not None
            keys, values = cache.text
        else:
            keys, values = _keys_and_values(self.key_value(text), self.v_bias, self.num_heads)
            if cache is not None:
                cache.text = keys, values
        query = self.query(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, keys[place], values[place], attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Pooling(nn.Module):
    """Attention of one learned query per head to the tokens of a caption."""

    def __init__(self, config: InfinityConfig):
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(torch.empty(config.pooling_heads, width // config.pooling_heads))
        self.read = Linear(config.caption_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = Linear(width, width)

    def forward(self, text: Float[Tensor, "D T W"], mask: Bool[Tensor, "D 1 1 T"] | None) -> Float[Tensor, "D C"]:
        keys, values = _keys_and_values(self.read(text), self.v_bias, len(self.queries))
        query = self.queries[:, None].type_as(keys).expand(len(text), -1, -1, -1)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.out(out.flatten(1))


def _keys_and_values(
    joined: Float[Tensor, "D T C2"], v_bias: Float[Tensor, " C"], num_heads: int
) -> tuple[Float[Tensor, "D H T d"], Float[Tensor, "D H T d"]]:
    keys, values = joined.unflatten(2, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return keys, values + v_bias.view(num_heads, 1, -1).type_as(values)


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention to the caption, and feed-forward. The first and the last are
    scaled, shifted and gated by the pooled caption (adaLN)."""

    def __init__(self, config: InfinityConfig):
        super().__init__()
        width, self.eps = config.width, config.norm_eps
        self.modulation_offset = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attention = CrossAttention(config)
        self.fc1 = Linear(width, config.feed_forward_width)
        self.fc2 = Linear(config.feed_forward_width, width)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        shared: Float[Tensor, "R 6 C"],
        rotation: Float[Tensor, "T d2 2"],
        text: Float[Tensor, "D N C"] | None,
        mask: Bool[Tensor, "R 1 1 N"] | None,
        place: Int[Tensor, " R"],
        spans: Sequence[Span] = (),
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "R T C"]:
        """Return the residual stream after this block. `text` is None if the cache has its keys and values."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (shared + self.modulation_offset).unsqueeze(2).unbind(1)
        held = None if cache is None else cache.attention
        x = torch.addcmul(x, gate1, self.attention(self.norm(x, scale1, shift1), rotation, spans, held))
        x = x + self.cross_attention(self.cross_norm(x), text, place, mask, cache)
        hidden = F.gelu(self.fc1(self.norm(x, scale2, shift2)), approximate="tanh")
        return torch.addcmul(x, gate2, self.fc2(hidden))

    def norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Apply layer norm with the scale and shift of the caption."""
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), 1 + scale)


class InfinityTransformer(nn.Module):
    """The network: from captions and the feature maps of the previous scales to two logits for each bit."""

    levels: Tensor
    rotation: Tensor

    def __init__(self, config: InfinityConfig, scales: Scales, bits: int):
        super().__init__()
        if len(scales) > config.num_levels:
            raise UserError(
                f"num_levels: {config.num_levels} embeddings for {len(scales)} scales; give at least one for each"
            )
        self.config = config
        width = config.width
        self.counts = tuple(height * width for height, width in scales)
        """number of positions of each scale"""
        self.null_caption = nn.Parameter(torch.empty(config.num_caption_tokens, config.caption_width))
        self.text_norm = nn.RMSNorm(config.caption_width, eps=config.norm_eps)
        self.pooling = Pooling(config)
        self.text_in = Linear(config.caption_width, width)
        self.text_out = Linear(width, width)
        self.start_position = nn.Parameter(torch.empty(width))
        self.level_embedding = nn.Embedding(config.num_levels, width)
        self.code_projection = nn.Linear(bits, width)
        self.shared_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = Linear(width, 2 * bits)
        # Always on the CPU, so that a model built on "meta" is complete once its weights are loaded.
        counts = torch.tensor(self.counts, device="cpu")
        levels = torch.arange(len(scales), device="cpu").repeat_interleave(counts)
        self.register_buffer("levels", levels, persistent=False)
        rotation = rotation_table(scales, config.rotary_grid, width // config.num_heads)
        self.register_buffer("rotation", rotation, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as for VAR: std sqrt(1 / 3C), smaller for output projections, gates and head."""
        std = (1 / self.config.width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.level_embedding.weight, self.start_position, self.pooling.queries):
            nn.init.trunc_normal_(weight, std=std)
        nn.init.normal_(self.null_caption, std=self.config.caption_width**-0.5)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_modulation.weight.mul_(0.5)
            for block in self.blocks:
                assert isinstance(block, Block)
                for layer in (block.attention.proj, block.cross_attention.proj, block.fc2):
                    layer.weight.div_((2 * self.config.depth) ** 0.5)
                block.modulation_offset[2:].mul_(0.5)
                block.modulation_offset[:2].mul_(1e-3)

    def spans(self, length: int) -> list[Span]:
        """Return the spans of the first scales with this number of positions: the coarse ones share one masked span."""
        counts = [count for count, end in zip(self.counts, accumulate(self.counts), strict=True) if end <= length]
        coarse = sum(end - start for start, end in _pairs(counts[:-1]) if end <= COARSE)
        spans = [Span(0, coarse, self.levels[:coarse, None] >= self.levels[None, :coarse])] if coarse else []
        return [*spans, *(Span(start, end) for start, end in _pairs(counts) if start >= coarse)]

    def _read(self, captions: Captions) -> tuple[Float[Tensor, "D T C"], Float[Tensor, "D C"]]:
        """Return the text that the blocks read, and the pooled captions.

        The features of no caption are the first of the learned ones, as many as the caption that they stand for has.
        """
        length = captions.features.shape[1]
        number = torch.arange(length, device=captions.lengths.device) - (length - captions.lengths[:, None])
        null = self.null_caption[number.clamp_min(0)]
        text = torch.where(captions.null[:, None, None], null, captions.features.type_as(null))
        text = self.text_norm(text)
        hidden = F.gelu(self.text_in(text), approximate="tanh")
        return self.text_out(hidden), self.pooling(text, captions.mask)

    def _classify(
        self,
        x: Float[Tensor, "R T C"],
        condition: Float[Tensor, "R C"],
        strength: Tensor | None,
        reduction: Reduction | None,
    ) -> Float[Tensor, "B N *V"]:
        """Return logits, in float32 even under autocast.

        The head is affine, so guidance is applied to its input instead of the logits, at half the cost.
        """
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.head_modulation(F.silu(condition.float())).unsqueeze(1).chunk(2, dim=-1)
            normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.config.norm_eps)
            x = normed * (1 + scale) + shift
            if strength is not None:
                conditional, unconditional = x.chunk(2)
                x = unconditional + strength * (conditional - unconditional)
            return self.head(x) if reduction is None else reduced(self.head, x, reduction)

    def forward(
        self,
        captions: Captions,
        codes: Float[Tensor, "B T D"] | None,
        memory: Memory | None = None,
        strength: Tensor | None = None,
        reduction: Reduction | None = None,
    ) -> Float[Tensor, "B N *V"]:
        """Return the logits of N tokens, (B, N, 2·D): two for each bit, those of 0 and 1, are adjacent.

        Args:
            captions: captions of R rows.
            codes: feature maps so far at T positions, one for each position of the scales after the first; None for
                the first scale, whose input is the pooled caption.
            memory: without it, `codes` are those of all scales or of the first ones, and so are the logits,
                teacher-forced. With it, they are those of the next scale alone.
            strength: strength of guidance; if given, there are R = 2B rows, and the second half is unconditional.
            reduction: function of the logits to return instead of them.
        """
        text, condition = None, None if memory is None else memory.condition
        if condition is None:
            text, pooled = self._read(captions)
            condition = pooled.float()[captions.place]
            if memory is not None:
                memory.condition = condition
        start = 0 if memory is None else memory.blocks[0].attention.length
        parts = []
        if start == 0:
            parts.append((condition + self.start_position)[:, None])
        if codes is not None:
            projected = self.code_projection(codes)
            parts.append(projected.repeat(len(condition) // len(projected), 1, 1))
        x = torch.cat([part.float() for part in parts], dim=1)
        span = slice(start, start + x.shape[1])
        x = x + self.level_embedding(self.levels[span])
        with torch.autocast(x.device.type, enabled=False):
            shared = self.shared_modulation(F.silu(condition)).unflatten(1, (6, -1))
        mask = None if captions.mask is None else captions.mask[captions.place]
        spans = self.spans(x.shape[1]) if memory is None else ()
        caches = [None] * len(self.blocks) if memory is None else memory.blocks
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, shared, self.rotation[span], text, mask, captions.place, spans, cache)
        return self._classify(x, condition, strength, reduction)


def _pairs(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the start and the end of parts of these sizes."""
    return [(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
