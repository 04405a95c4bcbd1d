"""Read and write the tensor names of transformers' Llama and Qwen2, which Janus-Pro and SimpleAR share."""

import re

import torch
from torch import Tensor

from sfumato.families.published import StateDict, count_of, rename, shape_of
from sfumato.nn.llama import LlamaShape

# Patterns in our names and their published replacements, applied in order.
_NAMES = (
    (r"^blocks\.", "layers."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.proj\.", ".self_attn.o_proj."),
    (r"\.attention\.qkv\.", ".self_attn.qkv_proj."),
    (r"\.down\.", ".mlp.down_proj."),
)
_QUERY = re.compile(r"\.self_attn\.q_proj\.")
_JOINED = re.compile(r"\.self_attn\.qkv_proj\.")


def published_block(name: str) -> tuple[str, ...]:
    """Return the published names of a tensor of the blocks, with queries, keys and values still joined."""
    name = rename(name, _NAMES)
    if ".gate_up." in name:
        return tuple(name.replace(".gate_up.", f".mlp.{part}_proj.") for part in ("gate", "up"))
    return (name,)


def joined(state_dict: StateDict, head_width: int) -> dict[str, Tensor]:
    """Return published tensors with queries, keys and values joined to `qkv_proj`, as our blocks have them.

    The published rotary embedding pairs the channels i and i + d/2 of a head of width d; ours pairs neighbors.
    """
    result = dict(state_dict)
    for name in state_dict:
        if not _QUERY.search(name):
            continue
        names = [_QUERY.sub(f".self_attn.{part}_proj.", name) for part in "qkv"]
        if all(part in state_dict for part in names):
            query, key, value = (result.pop(part) for part in names)
            parts = [*(_neighbors(part, head_width) for part in (query, key)), value]
            result[_QUERY.sub(".self_attn.qkv_proj.", name)] = torch.cat(parts)
    return result


def divided(tensors: StateDict, shape: LlamaShape) -> dict[str, Tensor]:
    """Return tensors with the published queries, keys and values: the inverse of `joined`."""
    result = {}
    for name, tensor in tensors.items():
        if not _JOINED.search(name):
            result[name] = tensor
            continue
        heads = (shape.num_heads, shape.kv_heads, shape.kv_heads)
        query, key, value = tensor.split([count * shape.head_width for count in heads])
        parts = [*(_halves(part, shape.head_width) for part in (query, key)), value]
        result |= zip((_JOINED.sub(f".self_attn.{part}_proj.", name) for part in "qkv"), parts, strict=True)
    return result


def infer_llama_shape(state_dict: StateDict, prefix: str, num_heads: int) -> dict[str, int]:
    """Return depth, width, heads and feed-forward width from published tensors, whose names begin with `prefix`."""
    width = shape_of(state_dict, f"{prefix}norm.weight", "weights")[0]
    first = f"{prefix}layers.0."
    keys = shape_of(state_dict, f"{first}self_attn.k_proj.weight", "weights")[0]
    return {
        "depth": count_of(state_dict, rf"{re.escape(prefix)}layers\.(\d+)\."),
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": max(1, keys * num_heads // width),
        "feed_forward_width": shape_of(state_dict, f"{first}mlp.gate_proj.weight", "weights")[0],
    }


def _neighbors(tensor: Tensor, head_width: int) -> Tensor:
    """Order the rows of each head so that the two channels of a rotated pair are neighbors."""
    return tensor.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2).flatten(0, 2)


def _halves(tensor: Tensor, head_width: int) -> Tensor:
    """Order the rows of each head as published: the first channels of all pairs, then the second ones."""
    return tensor.unflatten(0, (-1, head_width // 2, 2)).transpose(1, 2).flatten(0, 2)
