"""VAR: a transformer that generates an image scale by scale (Tian et al., 2024).

The tokens of a scale are drawn in parallel, given all coarser scales. The model is exactly as published, so that
released weights load. Comments in the code note the two exceptions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.shared import check_sizes
from sfumato.nn.attention import KeyValueCache, Span, attend, causal_spans
from sfumato.nn.chunks import reduced
from sfumato.nn.linear import Linear


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Shape of a VAR transformer; scales, vocabulary and code width come from the tokenizer."""

    depth: int = 16
    """number of blocks"""
    width: int = 1024
    """width of the residual stream"""
    num_heads: int = 16
    """number of attention heads"""
    mlp_ratio: float = 4.0
    """hidden width of the feed-forward network, as a multiple of `width`"""
    num_classes: int = 1000
    """number of classes, without the null class of guidance"""
    shared_adaln: bool = False
    """use one projection of the class embedding for all blocks, with a learned offset per block (as in d36)"""
    l2_attention: bool = True
    """use unit-length queries and keys with a learned temperature per head"""
    norm_eps: float = 1e-6
    """epsilon of the layer norms"""

    def __post_init__(self):
        check_sizes(self)
        if self.width % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} does not divide the width {self.width}; give a divisor")


@dataclass
class BlockCache:
    """What a block keeps while an image is drawn."""

    attention: KeyValueCache
    modulation: Float[Tensor, "R 6 C"] | None = None
    """gates, scales and shifts, which are the same at all scales"""

    def fork(self, repeats: int) -> "BlockCache":
        """Return a copy with each row `repeats` times; copies are adjacent."""
        modulation = self.modulation
        return BlockCache(
            attention=self.attention.fork(repeats),
            modulation=None if modulation is None else modulation.repeat_interleave(repeats, dim=0),
        )


class Attention(nn.Module):
    """Multi-head self-attention; keys have no bias."""

    MAX_LOG_SCALE = 4.605170185988092  # log 100: the published clamp of the learned temperature

    def __init__(self, config: VARConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)
        self.log_scale = nn.Parameter(torch.full((config.num_heads, 1, 1), 4.0).log()) if config.l2_attention else None
        # Without L2 normalization, the published softmax scale is a quarter of the usual 1/sqrt(d).
        self.softmax_scale = 1.0 if config.l2_attention else 0.25 / (width // config.num_heads) ** 0.5

    def forward(
        self, x: Float[Tensor, "B T C"], spans: Sequence[Span], cache: KeyValueCache | None
    ) -> Float[Tensor, "B T C"]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv(x).add_(bias).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, d)
        if self.log_scale is not None:
            query = F.normalize(query, dim=-1) * self.log_scale.clamp_max(self.MAX_LOG_SCALE).exp()
            # Under autocast normalize returns float32, and a cache of float32 keys would take twice the memory.
            key = F.normalize(key, dim=-1).type_as(value)
        if cache is None:
            out = attend(query, key, value, spans, self.softmax_scale)
        else:
            key, value = cache.append(key, value)
            out = F.scaled_dot_product_attention(query, key, value, scale=self.softmax_scale)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block: attention and feed-forward, each scaled, shifted and gated by the class (adaLN)."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.eps = config.norm_eps
        hidden = round(config.width * config.mlp_ratio)
        self.attention = Attention(config)
        self.fc1 = Linear(config.width, hidden)
        self.fc2 = Linear(hidden, config.width)
        self.modulation = None if config.shared_adaln else nn.Linear(config.width, 6 * config.width)
        self.modulation_offset = (
            nn.Parameter(torch.randn(6, config.width) / config.width**0.5) if config.shared_adaln else None
        )

    def modulate(self, embedding: Float[Tensor, "B C"], shared: Tensor | None) -> Float[Tensor, "B 6 C"]:
        """Return the gates (attention, feed-forward), scales and shifts of this block."""
        if self.modulation is not None:
            return self.modulation(F.silu(embedding)).unflatten(1, (6, -1))
        assert shared is not None
        assert self.modulation_offset is not None
        return shared + self.modulation_offset

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        embedding: Float[Tensor, "R C"],
        shared: Float[Tensor, "R 6 C"] | None,
        spans: Sequence[Span] = (),
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "R T C"]:
        modulation = None if cache is None else cache.modulation
        if modulation is None:
            modulation = self.modulate(embedding, shared)
            if cache is not None:
                cache.modulation = modulation
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        keys = None if cache is None else cache.attention
        x = torch.addcmul(x, gate1, self.attention(self.norm(x, scale1, shift1), spans, keys))
        hidden = F.gelu(self.fc1(self.norm(x, scale2, shift2)), approximate="tanh")
        return torch.addcmul(x, gate2, self.fc2(hidden))

    def norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Apply layer norm with the scale and shift of the class."""
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), 1 + scale)


class VARTransformer(nn.Module):
    """The network: from class labels and the codes of the previous scales to logits."""

    levels: Tensor
    mask: Tensor

    def __init__(self, config: VARConfig, scales: Sequence[int], vocab_size: int, latent_channels: int):
        super().__init__()
        self.config = config
        width = config.width
        self.units = tuple(side * side for side in scales)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.start_position = nn.Parameter(torch.empty(self.units[0], width))
        self.positions = nn.Parameter(torch.empty(sum(self.units), width))
        self.level_embedding = nn.Embedding(len(self.units), width)
        self.code_projection = nn.Linear(latent_channels, width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = Linear(width, vocab_size)
        # Always on the CPU, so that a model built on "meta" is complete once its weights are loaded.
        levels = torch.arange(len(self.units), device="cpu").repeat_interleave(torch.tensor(self.units, device="cpu"))
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("mask", levels[:, None] >= levels[None, :], persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as published: std sqrt(1 / 3C), smaller for output projections, gates and head."""
        std = (1 / self.config.width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.class_embedding.weight, self.level_embedding.weight, self.positions, self.start_position):
            nn.init.trunc_normal_(weight, std=std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_modulation.weight.mul_(0.5)
            gates = 2 * self.config.width
            for block in self.blocks:
                assert isinstance(block, Block)
                block.attention.proj.weight.div_((2 * self.config.depth) ** 0.5)
                block.fc2.weight.div_((2 * self.config.depth) ** 0.5)
                if block.modulation is not None:
                    block.modulation.weight[gates:].mul_(0.5)
                    block.modulation.weight[:gates].mul_(1e-5)
                if block.modulation_offset is not None:
                    block.modulation_offset[2:].mul_(0.5)
                    block.modulation_offset[:2].mul_(1e-5)

    def _place(self, span: slice) -> Float[Tensor, "T C"]:
        return self.positions[span] + self.level_embedding(self.levels[span])

    def spans(self, length: int | None = None) -> list[Span]:
        """Return one span for each of the two finest scales (most of the tokens) and one masked span for the others.

        If there is a `length`, the scales are the first ones with this number of tokens.
        """
        units = [unit for unit, end in zip(self.units, accumulate(self.units), strict=True) if end <= (length or end)]
        return causal_spans(units, self.mask)

    def _classify(
        self,
        x: Float[Tensor, "R T C"],
        embedding: Float[Tensor, "R C"],
        strength: Tensor | None,
        reduction: Reduction | None,
    ) -> Float[Tensor, "B T *V"]:
        """Return logits, in float32 even under autocast. The raw class embedding modulates, even with shared adaLN.

        The head is affine, so guidance is applied to its input instead of the logits, at half the cost.
        """
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.head_modulation(F.silu(embedding.float())).unsqueeze(1).chunk(2, dim=-1)
            normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.config.norm_eps)
            x = normed * (1 + scale) + shift
            if strength is not None:
                conditional, unconditional = x.chunk(2)
                x = (1 + strength) * conditional - strength * unconditional
            return self.head(x) if reduction is None else reduced(self.head, x, reduction)

    def forward(
        self,
        labels: Int[Tensor, " R"],
        codes: Float[Tensor, "R T Z"] | None,
        caches: Sequence[BlockCache] | None = None,
        strength: Tensor | None = None,
        reduction: Reduction | None = None,
    ) -> Float[Tensor, "B N *V"]:
        """Return logits of scales.

        Args:
            labels: class of each row.
            codes: inputs of T positions, one for each position of the scales after the first; None for the first
                scale, whose input is the class.
            caches: without caches, `codes` are those of all scales or of the first ones, and so are the logits,
                teacher-forced. With caches, they are those of the next scale alone.
            strength: strength of guidance; if given, the second half of the rows must be unconditional.
            reduction: function of the logits to return instead of them.
        """
        embedding = self.class_embedding(labels)
        first = 0 if caches is None else caches[0].attention.length
        parts = []
        if first == 0:
            parts.append(embedding[:, None] + self.start_position + self._place(slice(0, self.units[0])))
            first = self.units[0]
        if codes is not None:
            parts.append(self.code_projection(codes) + self._place(slice(first, first + codes.shape[1])))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        shared = None
        if self.shared_modulation is not None:
            shared = self.shared_modulation(F.silu(embedding)).unflatten(1, (6, -1))
        spans = self.spans(x.shape[1]) if caches is None else ()
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, embedding, shared, spans, cache)
        return self._classify(x, embedding, strength, reduction)
