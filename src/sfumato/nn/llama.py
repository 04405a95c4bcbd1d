"""A Llama that reads a condition and generates image tokens one by one, shared by the families that are one.

The condition comes first and may be padded on the left. `Llama` is the part that all have; a family adds what the
condition and the tokens are, their rotary positions, and the head. A condition of text may also be continued with text,
if the family has a head for it.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.nn.attention import KeyValueCache, Slot
from sfumato.nn.chunks import reduced
from sfumato.nn.linear import Linear
from sfumato.nn.rotary import rotate
from sfumato.policy import Reduction


@runtime_checkable
class LlamaShape(Protocol):
    """Shape of the blocks."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        ...

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, each shared by a group of query heads."""
        ...

    @property
    def head_width(self) -> int:
        """Width of a head."""
        ...

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the gated feed-forward network."""
        ...

    @property
    def norm_eps(self) -> float:
        """Epsilon of the RMS norms."""
        ...


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; keys and values may be shared by groups of heads."""

    def __init__(self, shape: LlamaShape, qkv_bias: bool = False):
        super().__init__()
        self.heads, self.head_width = (shape.num_heads, shape.kv_heads), shape.head_width
        self.qkv = Linear(shape.width, (shape.num_heads + 2 * shape.kv_heads) * shape.head_width, bias=qkv_bias)
        self.proj = Linear(shape.width, shape.width, bias=False)

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

    def __init__(self, shape: LlamaShape, qkv_bias: bool = False):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.attention = Attention(shape, qkv_bias)
        self.feed_forward_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.gate_up = Linear(shape.width, 2 * shape.feed_forward_width, bias=False)
        self.down = Linear(shape.feed_forward_width, shape.width, bias=False)

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


class Llama(nn.Module):
    """The network: from the condition and the image tokens so far to the logits of the next token."""

    blocks: nn.ModuleList
    norm: nn.RMSNorm

    def embed_condition(self, condition: Tensor) -> Float[Tensor, "R P C"]:
        """Embed the condition, in the type of the residual stream even under autocast."""
        raise NotImplementedError

    def embed_tokens(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N C"]:
        """Embed image tokens."""
        raise NotImplementedError

    def positions(self, prefix: int, length: int) -> Float[Tensor, "T d2 2"]:
        """Return the rotations of the first `length` positions, of which `prefix` are the condition's."""
        raise NotImplementedError

    def position(self, place: Int[Tensor, "1"], prefix: int) -> Float[Tensor, "1 d2 2"]:
        """Return the rotation at a place in the sequence, after a condition of `prefix` positions."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "R T C"]) -> Float[Tensor, "R T C"]:
        """Return what the head reads."""
        return x

    def score(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits, which are an affine function of the features: guidance depends on this."""
        raise NotImplementedError

    def score_text(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next text tokens."""
        raise NotImplementedError

    def forward(
        self,
        condition: Tensor | None,
        tokens: Int[Tensor, "R N"] | None,
        mask: Bool[Tensor, "R P"] | None = None,
        strength: float | Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        slot: Slot | None = None,
        reduction: Reduction | None = None,
        text: bool = False,
    ) -> Float[Tensor, "B T *V"]:
        """Return logits of the token after the condition, and of those after each of `tokens`.

        Args:
            condition: what `embed_condition` reads; None for a decoding step, where it is in the caches.
            tokens: image tokens, from the first; None if only the condition is read.
            mask: True for the text tokens of the condition, False for padding.
            strength: strength of guidance; if given, the second half of the rows must be unconditional.
            caches: memory for the keys and values; without `slot`, it is empty and gets those of the condition.
            slot: place of a single token in the caches, in a decoding step.
            reduction: function of the logits to return instead of them.
            text: whether `tokens` are text as the condition is, and the logits those of text.
        """
        parts = [] if condition is None else [self.embed_condition(condition)]
        prefix = parts[0].shape[1] if parts else 0
        if tokens is not None:
            parts.append(self.embed_condition(tokens) if text else self.embed_tokens(tokens))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        seen = None
        if slot is None:
            rotation = self.positions(prefix, x.shape[1])
            if mask is not None:
                seen = causal_mask(mask, x.shape[1])
        else:
            assert caches is not None
            # The first token of the image follows the condition, at the end of what `caches` were filled with.
            rotation = self.position(slot.position, caches[0].length)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, rotation, seen, cache, slot)
        x = self.norm(x[:, max(0, prefix - 1) :])
        with torch.autocast(x.device.type, enabled=False):
            # In bfloat16, sampled and scored log-probabilities would differ about twice as much.
            x = x.type_as(self.norm.weight)
            x = x if text else self.features(x)
            if strength is not None:
                # Guidance is applied to the head's input instead of the logits, at half the cost.
                conditional, unconditional = x.chunk(2)
                x = unconditional + strength * (conditional - unconditional)
            head = self.score_text if text else self.score
            return head(x) if reduction is None else reduced(head, x, reduction)


def rotations(length: int, head_width: int, base: float) -> Float[Tensor, "N d2 2"]:
    """Return cosines and sines of the rotary embedding of a sequence."""
    pairs = head_width // 2
    frequencies = base ** (-torch.arange(pairs, device="cpu", dtype=torch.float64) / pairs)
    angles = torch.outer(torch.arange(length, device="cpu", dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def causal_mask(prefix_mask: Bool[Tensor, "R P"], length: int) -> Bool[Tensor, "R 1 T T"]:
    """Return the attention mask: each position sees itself and all earlier positions except padded text tokens."""
    columns = F.pad(prefix_mask, (0, length - prefix_mask.shape[1]), value=True)[:, None, None]
    square = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device)
    return (square.tril() & columns) | square.tril().triu()
