"""Kernels of the fake GPU that torch selects only on a real one: attention and RMS norm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention with the kernel that torch selects on a GPU of compute capability 8.0 or higher.

    The rules are those of `sdp_utils.cpp`. Flash attention needs 16-bit numbers, no mask and heads of at most 256
    channels. Memory-efficient attention needs as many heads of keys as of queries, and heads of a multiple of 8
    channels in 16 bits or 4 channels in 32 bits. Both need channels that are adjacent in memory. Everything else is
    computed with all scores in memory.
    """
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
        attn_mask = attn_mask.to(half) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"Expected query, key and value to have one type: {query.dtype}, {key.dtype}, {value.dtype}")
    width, half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    adjacent = all(x.stride(-1) == 1 for x in (query, key, value)) and query.ndim == 4
    square = query.shape[-2] == key.shape[-2] or not is_causal
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    with torch.autocast("cuda", enabled=False):
        if half and attn_mask is None and width <= 256 and adjacent and square:
            padded = [F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value)]
            scale = width**-0.5 if scale is None else scale
            out = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=scale)[0]
            return out[..., :width]
        if adjacent and width % (8 if half else 4) == 0 and query.shape[1] == key.shape[1]:
            if attn_mask is not None:
                if attn_mask.shape[-1] % 8:
                    attn_mask = F.pad(attn_mask, (0, -attn_mask.shape[-1] % 8))[..., : key.shape[-2]]
                attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
            keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale
            )[0]
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]


class FusedNorm(torch.autograd.Function):
    """The kernels and the memory of RMS norm on a GPU. Torch's builds without CUDA take it apart into six kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Keep the input alone."""
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the right shapes."""
        x, weight = ctx.saved_tensors
        return (gradients[0] * weight).to(x.dtype), gradients[0].flatten(0, -2).sum(0).to(weight.dtype)
