"""Read and write VAR's published tensor names. Upstream names occur only in the families' `published.py`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.published import (
    StateDict,
    count_of,
    load_strictly,
    rename,
    shape_of,
)
from sfumato.families.published_vqvae import infer_vqvae_config, load_vqvae, written_vqvae
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.vqvae import MultiScaleVQVAE
from sfumato.policy import Card

# Patterns in our names and their published replacements, applied in order.
_VAR_NAMES = (
    (r"^class_embedding", "class_emb"),
    (r"^start_position", "pos_start"),
    (r"^positions", "pos_1LC"),
    (r"^level_embedding", "lvl_embed"),
    (r"^code_projection", "word_embed"),
    (r"^shared_modulation", "shared_ada_lin.1"),
    (r"^head_modulation", "head_nm.ada_lin.1"),
    (r"\.attention\.log_scale", ".attn.scale_mul_1H11"),
    (r"\.attention\.qkv", ".attn.mat_qkv"),
    (r"\.attention\.", ".attn."),
    (r"\.modulation_offset", ".ada_gss"),
    (r"\.modulation\.", ".ada_lin.1."),
    (r"\.(fc[12])\.", r".ffn.\1."),
)


def read_var(
    var_state_dict: StateDict,
    vqvae_state_dict: StateDict,
    *,
    patch_nums: Sequence[int],
    num_heads: int,
    norm_eps: float = 1e-6,
    phi_ratio: float = 0.5,
    norm_groups: int = 32,
    class_names: Sequence[str] | None = None,
) -> VAR:
    """Build a VAR model from state dicts with published names; its shape is inferred from the tensors.

    Args:
        var_state_dict: tensors of the transformer, of any floating-point type; they are copied to float32.
        vqvae_state_dict: tensors of the tokenizer.
        patch_nums: side of each token map, coarse to fine.
        num_heads: number of attention heads.
        norm_eps: epsilon of the transformer's layer norms.
        phi_ratio: weight of the convolution in the residual "phi" blocks.
        norm_groups: number of groups in the tokenizer's group norms.
        class_names: names of the classes; the numbers by default.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or `patch_nums` contradicts the levels in
            the file.
    """
    scales = tuple(patch_nums)
    levels = var_state_dict.get("lvl_1L")
    if levels is not None and not levels.is_meta:
        sides = tuple(math.isqrt(int(count)) for count in levels.flatten().long().bincount())
        if sides != scales:
            raise UserError(f"patch_nums: {scales} contradicts lvl_1L of the weights; give {sides}")
    config = infer_var_config(var_state_dict, num_heads=num_heads, norm_eps=norm_eps)
    vqvae_config = infer_vqvae_config(vqvae_state_dict, scales=scales, phi_ratio=phi_ratio, norm_groups=norm_groups)
    with torch.device("meta"):  # skips the computation of initial values
        tokenizer = MultiScaleVQVAE(vqvae_config)
        generator = VAR(config, tokenizer, Card(family="var", class_names=tuple(class_names or ())))
    load_vqvae(tokenizer, vqvae_state_dict)
    derived = _derived_buffers(generator).keys()
    network = {k: v for k, v in var_state_dict.items() if k not in derived}
    load_strictly(generator.network, network, _published_var, "weights")
    tokenizer.requires_grad_(False)
    return generator


def write_var(generator: VAR) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state dicts of transformer and tokenizer with the published names and shapes, for the original code."""
    network = {}
    for name, tensor in generator.network.state_dict().items():
        (published,) = _published_var(name)
        leading = {"pos_start": 1, "pos_1LC": 1, "ada_gss": 2, "scale_mul_1H11": 1}.get(published.split(".")[-1], 0)
        network[published] = tensor[(None,) * leading]
    network |= _derived_buffers(generator)
    return network, written_vqvae(generator.tokenizer)


def infer_var_config(state_dict: StateDict, *, num_heads: int, norm_eps: float = 1e-6) -> VARConfig:
    """Infer the shape of the transformer from a state dict with published names."""
    width = shape_of(state_dict, "pos_start", "weights")[-1]
    return VARConfig(
        depth=count_of(state_dict, r"blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        mlp_ratio=shape_of(state_dict, "blocks.0.ffn.fc1.weight", "weights")[0] / width,
        num_classes=shape_of(state_dict, "class_emb.weight", "weights")[0] - 1,
        shared_adaln="shared_ada_lin.1.weight" in state_dict,
        l2_attention="blocks.0.attn.scale_mul_1H11" in state_dict,
        norm_eps=norm_eps,
    )


def _published_var(name: str) -> tuple[str, ...]:
    return (rename(name, _VAR_NAMES),)


def _derived_buffers(generator: VAR) -> dict[str, Tensor]:
    """Return the buffers of the published state dict that are determined by the shape."""
    network = generator.network
    blocked = torch.zeros(network.mask.shape).masked_fill(~network.mask.cpu(), -torch.inf)
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(generator.config.width) for i in range(generator.config.depth)}
    return {"lvl_1L": network.levels[None].cpu(), "attn_bias_for_masking": blocked[None, None], **zeros}


def inspect_var(state_dict: StateDict) -> dict[str, object]:
    """Return the depth and width, which distinguish the sizes of VAR."""
    width = shape_of(state_dict, "pos_start", "weights")[-1]
    return {"depth": count_of(state_dict, r"blocks\.(\d+)\."), "width": width}
