"""LlamaGen: a Llama that generates an image token by token (Sun et al., 2024), class- or text-conditional.

The condition comes first, as one class token or as the tokens of a caption padded on the left. The image follows in
raster order. The model is exactly as published, so that released weights load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.next_token_network import NextTokenNetwork
from sfumato.families.shared import check_heads, check_sizes
from sfumato.nn.attention import KeyValueCache, Slot
from sfumato.nn.linear import Linear
from sfumato.nn.rotary import rotate


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig:
    """Shape of a LlamaGen transformer; grid size and vocabulary come from the tokenizer."""

    depth: int = 12
    """number of blocks"""
    width: int = 768
    """width of the residual stream"""
    num_heads: int = 12
    """number of attention heads"""
    num_kv_heads: int | None = None
    """number of key and value heads, each shared by a group of query heads; `num_heads` by default"""
    feed_forward_width: int = 2048
    """hidden width of the gated feed-forward network"""
    num_classes: int = 1000
    """number of classes, without the null class of guidance; 0 for a text-conditional model"""
    caption_width: int = 0
    """width of the text features; 0 for a class-conditional model"""
    num_caption_tokens: int = 120
    """maximum length of a caption in text tokens"""
    text_encoder: str = ""
    """text encoder for the captions: a bundled one, or a T5 by hub id or path"""
    rope_base: float = 10000.0
    """base of the rotary frequencies"""
    condition_at_origin: bool = False
    """use unrotated queries and keys for the tokens of the condition; in the published model these are zero, with
    which small models learn their conditions slowly"""
    norm_eps: float = 1e-5
    """epsilon of the RMS norms"""

    def __post_init__(self):
        check_sizes(self, may_be_zero=("num_classes", "caption_width", "num_caption_tokens", "num_kv_heads"))
        check_heads(self, 4)
        if bool(self.num_classes) == bool(self.caption_width):
            raise UserError(
                f"num_classes: {self.num_classes} with caption_width {self.caption_width}; give one and set the other 0"
            )

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.width // self.num_heads


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; keys and values may be shared by groups of heads."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.heads, self.head_width = (config.num_heads, config.kv_heads), config.head_width
        self.qkv = Linear(config.width, (config.num_heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.proj = Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Float[Tensor, "T d2 2"],
        mask: Bool[Tensor, "R 1 T N"] | None,
        cache: KeyValueCache | None,
        slot: Slot | None,
    ) -> Float[Tensor, "R T C"]:
        num_heads, kv_heads = self.heads
        heads = self.qkv(x).unflatten(2, (num_heads + 2 * kv_heads, -1))
        placed, value = heads.split((num_heads + kv_heads, kv_heads), dim=2)
        query, key = rotate(placed, rotation).transpose(1, 2).split(self.heads, dim=1)
        value = value.transpose(1, 2)
        if self.head_width % 8 and cache is not None and x.device.type != "cpu":
            # Fused kernels need a multiple of 8, and would pad all keys again for each token (width 100 of the 3B).
            query, key, value = (F.pad(part, (0, -self.head_width % 8)) for part in (query, key, value))
        if slot is not None:
            assert cache is not None
            (key, value), mask = cache.put(key, value, slot), slot.mask
        elif cache is not None:
            cache.append(key, value)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and x.shape[1] > 1,
            scale=self.head_width**-0.5,
            enable_gqa=num_heads != kv_heads,
        )
        return self.proj(out[..., : self.head_width].transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block: attention and a gated feed-forward network (SwiGLU), each after an RMS norm."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.gate_up = Linear(config.width, 2 * config.feed_forward_width, bias=False)
        self.down = Linear(config.feed_forward_width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        slot: Slot | None = None,
    ) -> Float[Tensor, "R T C"]:
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache, slot)
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotation_table(grid_size: int, head_width: int, base: float) -> Float[Tensor, "N d2 2"]:
    """Return cosines and sines of the two-dimensional rotary embedding.

    The first half of a head's pairs rotates with the row, the second half with the column.
    """
    pairs = head_width // 4
    frequencies = base ** (-torch.arange(pairs, device="cpu") / pairs)
    angles = torch.outer(torch.arange(grid_size, device="cpu").float(), frequencies)  # (grid, d / 4)
    rows = angles[:, None].expand(-1, grid_size, -1)
    columns = angles[None].expand(grid_size, -1, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


class LlamaGenTransformer(NextTokenNetwork):
    """The network: from the condition and the image tokens so far to the logits of the next token."""

    rotation: Tensor
    null_caption: Tensor

    def __init__(self, config: LlamaGenConfig, grid_size: int, vocab_size: int):
        super().__init__()
        self.config, self.depth = config, config.depth
        width = config.width
        if config.caption_width:
            self.caption_in = Linear(config.caption_width, width, bias=False)
            self.caption_out = Linear(width, width, bias=False)
            null = torch.randn(config.num_caption_tokens, config.caption_width) / config.caption_width**0.5
            self.register_buffer("null_caption", null)
        else:
            self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.head = Linear(width, vocab_size, bias=False)
        rotation = rotation_table(grid_size, config.head_width, config.rope_base)
        self.register_buffer("rotation", rotation, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as published: normal with standard deviation 0.02; the head is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    @property
    def last_norm(self) -> Any:
        """The RMS norm after the blocks."""
        return self.norm

    def run_blocks(
        self,
        x: Float[Tensor, "R T C"],
        prefix: int,
        mask: Bool[Tensor, "R 1 T T"] | None,
        caches: Sequence[KeyValueCache] | None,
        slot: Slot | None,
    ) -> Float[Tensor, "R T C"]:
        """Run all blocks; see `NextTokenNetwork`."""
        if slot is None:
            rotation = self.positions(prefix, x.shape[1])
        else:
            assert caches is not None
            # The image starts at the origin; it follows the condition, which is what `caches` were filled with.
            rotation = self.rotation.index_select(0, slot.position - caches[0].length)
        for block, cache in zip(self.blocks, caches or [None] * self.depth, strict=True):
            x = block(x, rotation, mask, cache, slot)
        return x

    def positions(self, prefix: int, length: int) -> Float[Tensor, "T d2 2"]:
        """Return the rotations of the first positions: those of the condition, zero as published (not the identity),
        followed by those of the image."""
        condition = self.rotation.new_zeros(prefix, *self.rotation.shape[1:])
        if self.config.condition_at_origin:
            condition[..., 0] = 1.0
        return torch.cat([condition, self.rotation])[:length]

    def embed_condition(self, condition: Int[Tensor, " R"] | Float[Tensor, "R P W"]) -> Float[Tensor, "R P C"]:
        """Embed classes as one token, or captions as many, in the type of the residual stream even under autocast."""
        if not condition.is_floating_point():
            return self.class_embedding(condition)[:, None]
        hidden = F.gelu(self.caption_in(condition), approximate="tanh")
        return self.caption_out(hidden).type_as(self.token_embedding.weight)

    def embed_tokens(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N C"]:
        """Embed image tokens."""
        return self.token_embedding(tokens)

    def score(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next tokens."""
        return self.head(x)
