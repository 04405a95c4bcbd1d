"""LlamaGen: a Llama that generates an image token by token (Sun et al., 2024), class- or text-conditional.

The condition comes first, as one class token or as the tokens of a caption padded on the left. The image follows in
raster order. The model is exactly as published, so that released weights load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.nn.attention import KeyValueCache, project


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
        if self.width % self.num_heads or self.width // self.num_heads % 4:
            raise UserError(f"num_heads: {self.num_heads} heads must divide the width {self.width} into multiples of 4")
        if self.num_heads % self.kv_heads:
            raise UserError(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}")
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


def rotate(x: Float[Tensor, "R T H d"], rotation: Float[Tensor, "T d2 2"]) -> Float[Tensor, "R T H d"]:
    """Rotate each pair of channels by the angle of its position. Zeros in `rotation` set the vector to zero."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(rotation.float())[:, None]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; keys and values may be shared by groups of heads."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.heads = (config.num_heads, config.kv_heads)
        self.qkv = nn.Linear(config.width, (config.num_heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Float[Tensor, "T d2 2"],
        mask: Bool[Tensor, "R 1 T N"] | None,
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "R T C"]:
        num_heads, kv_heads = self.heads
        heads = project(self.qkv, x).unflatten(2, (num_heads + 2 * kv_heads, -1))
        placed, value = heads.split((num_heads + kv_heads, kv_heads), dim=2)
        query, key = rotate(placed, rotation).transpose(1, 2).split(self.heads, dim=1)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        causal = mask is None and x.shape[1] > 1
        grouped = num_heads != kv_heads
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return project(self.proj, out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block: attention and a gated feed-forward network (SwiGLU), each after an RMS norm."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.feed_forward_width, bias=False)
        self.down = nn.Linear(config.feed_forward_width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "R T C"]:
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        gate, up = project(self.gate_up, self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + project(self.down, F.silu(gate) * up)


class LlamaGenTransformer(nn.Module):
    """The network: from the condition and the image tokens so far to the logits of the next token."""

    rotation: Tensor
    null_caption: Tensor

    def __init__(self, config: LlamaGenConfig, grid_size: int, vocab_size: int):
        super().__init__()
        self.config = config
        width = config.width
        if config.caption_width:
            self.caption_in = nn.Linear(config.caption_width, width, bias=False)
            self.caption_out = nn.Linear(width, width, bias=False)
            null = torch.randn(config.num_caption_tokens, config.caption_width) / config.caption_width**0.5
            self.register_buffer("null_caption", null)
        else:
            self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, vocab_size, bias=False)
        rotation = rotation_table(grid_size, config.head_width, config.rope_base)
        self.register_buffer("rotation", rotation, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as published: normal with standard deviation 0.02; the head is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def embed_classes(self, labels: Int[Tensor, " R"]) -> Float[Tensor, "R 1 C"]:
        """Embed classes as sequences of one token."""
        return self.class_embedding(labels)[:, None]

    def embed_captions(self, features: Float[Tensor, "R P W"]) -> Float[Tensor, "R P C"]:
        """Project caption features to the network's width, in the type of the residual stream even under autocast."""
        hidden = F.gelu(self.caption_in(features), approximate="tanh")
        return self.caption_out(hidden).type_as(self.token_embedding.weight)

    def positions(self, prefix_length: int) -> Float[Tensor, "T d2 2"]:
        """Return the condition's rotations, zero as published (not the identity), followed by those of the image."""
        condition = self.rotation.new_zeros(prefix_length, *self.rotation.shape[1:])
        if self.config.condition_at_origin:
            condition[..., 0] = 1.0
        return torch.cat([condition, self.rotation])

    def hidden(
        self,
        x: Float[Tensor, "R T C"],
        rotation: Tensor,
        mask: Tensor | None = None,
        caches: Sequence[KeyValueCache | None] | None = None,
    ) -> Float[Tensor, "R T C"]:
        """Run the blocks; returns the output of the last one."""
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, rotation, mask, cache)
        return x

    def classify(self, x: Float[Tensor, "R T C"], strength: float | Tensor | None = None) -> Float[Tensor, "B T V"]:
        """Return logits in float32. If `strength` is given, the second half of the rows must be unconditional.

        The head is linear, so guidance is applied to its input instead of the logits, at half the cost.
        """
        x = self.norm(x)
        if strength is not None:
            conditional, unconditional = x.chunk(2)
            x = unconditional + strength * (conditional - unconditional)
        return project(self.head, x).float()

    def forward(
        self,
        prefix: Float[Tensor, "R P C"],
        mask: Bool[Tensor, "R P"] | None,
        tokens: Int[Tensor, "R N"],
        strength: float | Tensor | None = None,
    ) -> Float[Tensor, "B N V"]:
        """Return teacher-forced logits of all image tokens, guided if `strength` is given."""
        x = torch.cat([prefix, self.token_embedding(tokens[:, :-1])], dim=1)
        rotation = self.positions(prefix.shape[1])[: x.shape[1]]
        x = self.hidden(x, rotation, None if mask is None else causal_mask(mask, x.shape[1]))
        return self.classify(x[:, prefix.shape[1] - 1 :], strength)


def causal_mask(prefix_mask: Bool[Tensor, "R P"], length: int) -> Bool[Tensor, "R 1 T T"]:
    """Return the attention mask: each position sees itself and all earlier positions except padded text tokens."""
    columns = F.pad(prefix_mask, (0, length - prefix_mask.shape[1]), value=True)[:, None, None]
    square = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device)
    return (square.tril() & columns) | square.tril().triu()
