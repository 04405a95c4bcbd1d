"""Read the shape of transformers' Llama or Qwen2 from its tensors, for Janus-Pro and SimpleAR."""

import re

from sfumato.families.published import StateDict, count_of, shape_of


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
