"""Read and write the published tensor names of the single-scale tokenizer, which LlamaGen and Janus-Pro share."""

import torch
from torch import Tensor

from sfumato.families.published import (
    StateDict,
    infer_autoencoder,
    load_strictly,
    published_state_dict,
    rename,
    shape_of,
)
from sfumato.families.vq import VQConfig, VQModel

# Patterns in our names and their published replacements, applied in order.
_NAMES = (
    (r"^pre_conv", "quant_conv"),
    (r"^post_conv", "post_quant_conv"),
    (r"^quantizer\.codebook", "quantize.embedding"),
    (r"\.levels\.", ".conv_blocks."),
    (r"\.blocks\.", ".res."),
    (r"\.attentions\.", ".attn."),
    (r"^(encoder\.conv_blocks\.\d+)\.resample", r"\1.downsample"),
    (r"^(decoder\.conv_blocks\.\d+)\.resample", r"\1.upsample"),
    (r"\.middle\.block1", ".mid.0"),
    (r"\.middle\.attention", ".mid.1"),
    (r"\.middle\.block2", ".mid.2"),
    (r"\.proj\.", ".proj_out."),
    (r"\.shortcut\.", ".nin_shortcut."),
)
_USAGE = "quantize.codebook_used"
"""Usage counter of the published tokenizer, which inference ignores."""
_USAGE_LENGTH = 65536


def load_vq(tokenizer: VQModel, state_dict: StateDict) -> None:
    """Load a state dict with published names as float32 copies; names must match exactly.

    Raises:
        UserError: names or shapes differ.
    """
    weights = {name: tensor for name, tensor in state_dict.items() if name != _USAGE}
    load_strictly(tokenizer, weights, _published, "tokenizer")


def written_vq(tokenizer: VQModel) -> dict[str, Tensor]:
    """Return the tensors under their published names."""
    return {**published_state_dict(tokenizer, _published), _USAGE: torch.zeros(_USAGE_LENGTH)}


def infer_vq_config(state_dict: StateDict, *, grid_size: int, norm_groups: int = 32) -> VQConfig:
    """Infer the shape of the tokenizer from a state dict with published names."""
    vocab_size, code_width = shape_of(state_dict, "quantize.embedding.weight", "tokenizer")
    base, multipliers, blocks, patch = infer_autoencoder(state_dict, "conv_blocks", "res")
    return VQConfig(
        grid_size=grid_size,
        vocab_size=vocab_size,
        code_width=code_width,
        latent_channels=shape_of(state_dict, "encoder.conv_out.weight", "tokenizer")[0],
        base_channels=base,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        patch=patch,
        norm_groups=norm_groups,
    )


def _published(name: str) -> tuple[str, ...]:
    name = rename(name, _NAMES)
    if ".qkv." in name:
        return tuple(name.replace(".qkv.", f".{part}.") for part in "qkv")
    return (name,)
