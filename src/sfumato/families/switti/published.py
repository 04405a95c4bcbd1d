"""Read and write Switti's published tensor names. Upstream names occur only in the families' `published.py`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.published import StateDict, count_of, load_strictly, published_state_dict, rename, shape_of
from sfumato.families.published_vqvae import infer_vqvae_config, load_vqvae, written_vqvae
from sfumato.families.switti.generator import Switti
from sfumato.families.switti.network import SwittiConfig
from sfumato.families.vqvae import MultiScaleVQVAE

# Patterns in our names and their published replacements, applied in order.
_NAMES = (
    (r"^start_position", "pos_start"),
    (r"^level_embedding", "lvl_embed"),
    (r"^code_projection", "word_embed"),
    (r"^caption_projection", "text_pooler"),
    (r"^crop_projection", "crop_proj"),
    (r"^crop_frequencies", "crop_embed.weight"),
    (r"^head_modulation", "head_nm.ada_lin.1"),
    (r"\.attention_norm", ".self_attention_norm1"),
    (r"\.attention_out_norm", ".self_attention_norm2"),
    (r"\.cross_norm", ".cross_attention_norm1"),
    (r"\.cross_out_norm", ".cross_attention_norm2"),
    (r"\.feed_forward_norm", ".ffn_norm1"),
    (r"\.feed_forward_out_norm", ".ffn_norm2"),
    (r"\.text_norm", ".attention_y_norm"),
    (r"\.attention\.qkv", ".attn.to_qkv"),
    (r"\.attention\.", ".attn."),
    (r"\.cross\.query", ".cross_attn.to_q"),
    (r"\.cross\.key_value", ".cross_attn.to_kv"),
    (r"\.cross\.", ".cross_attn."),
    (r"\.modulation\.", ".ada_lin.1."),
    (r"\.crop_scale", ".crop_cond_scales"),
    (r"\.down\.", ".ffn.down_proj."),
)
_DERIVED = ("lvl_1L", "attn_bias_for_masking")
"""Buffers of the published state dict that are determined by the shape."""


def read_switti(
    switti_state_dict: StateDict,
    vqvae_state_dict: StateDict,
    *,
    patch_nums: Sequence[int],
    num_heads: int,
    causal: bool | None = None,
    norm_eps: float = 1e-6,
    rope_base: float = 10000.0,
    rope_extent: float = 128.0,
    pooled_width: int = 1280,
    num_caption_tokens: int = 77,
    text_encoder: str = SwittiConfig.text_encoder,
    phi_ratio: float = 0.5,
    norm_groups: int = 32,
) -> Switti:
    """Build a Switti model from state dicts with published names; other shapes are inferred from the tensors.

    Args:
        switti_state_dict: tensors of the transformer, of any floating-point type; they are copied to float32.
        vqvae_state_dict: tensors of the tokenizer.
        patch_nums: side of each token map, coarse to fine.
        num_heads: number of attention heads.
        causal: whether the weights are those of Switti-AR (`use_ar` in the published `config.json`); by default as
            their attention mask says. No other tensor tells.
        norm_eps: epsilon of the transformer's norms.
        rope_base: base of the rotary frequencies (`rope_theta`).
        rope_extent: position of the last row and column (`rope_size`).
        pooled_width: number of the last features of a caption's last token that stand for the whole caption.
        num_caption_tokens: maximum length of a caption in text tokens.
        text_encoder: CLIP models by hub id or path, joined with a plus sign.
        phi_ratio: weight of the convolution in the residual "phi" blocks.
        norm_groups: number of groups in the tokenizer's group norms.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or an argument contradicts the tensors.
    """
    scales = tuple(patch_nums)
    _check_scales(switti_state_dict, scales)
    width = shape_of(switti_state_dict, "pos_start", "weights")[-1]
    config = SwittiConfig(
        depth=count_of(switti_state_dict, r"blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        causal=_infer_causal(switti_state_dict, causal),
        crop_condition="crop_embed.weight" in switti_state_dict,
        caption_width=shape_of(switti_state_dict, "blocks.0.attention_y_norm.weight", "weights")[0],
        pooled_width=pooled_width,
        num_caption_tokens=num_caption_tokens,
        text_encoder=text_encoder,
        rope_base=rope_base,
        rope_extent=rope_extent,
        norm_eps=norm_eps,
    )
    vqvae_config = infer_vqvae_config(vqvae_state_dict, scales=scales, phi_ratio=phi_ratio, norm_groups=norm_groups)
    with torch.device("meta"):  # skips the computation of initial values
        tokenizer = MultiScaleVQVAE(vqvae_config)
        generator = Switti(config, tokenizer)
    load_vqvae(tokenizer, vqvae_state_dict)
    network = {name: tensor for name, tensor in switti_state_dict.items() if name not in _DERIVED}
    load_strictly(generator.network, network, _published, "weights")
    tokenizer.requires_grad_(False)
    return generator


def write_switti(generator: Switti) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state dicts of transformer and tokenizer with the published names and shapes, for the original code."""
    network = published_state_dict(generator.network, _published)
    for name, tensor in network.items():
        if name == "pos_start" or name.endswith("crop_cond_scales"):
            network[name] = tensor[None]
    levels = generator.network.levels.cpu()
    seen = levels[:, None] >= levels if generator.config.causal else levels[:, None] == levels
    blocked = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    network |= zip(_DERIVED, (levels[None], blocked[None, None]), strict=True)
    return network, written_vqvae(generator.tokenizer)


def inspect_switti(state_dict: StateDict) -> dict[str, object]:
    """Return the depth, width and number of scales, which distinguish the sizes of Switti."""
    return {
        "depth": count_of(state_dict, r"blocks\.(\d+)\."),
        "width": shape_of(state_dict, "pos_start", "weights")[-1],
        "scales": shape_of(state_dict, "lvl_embed.weight", "weights")[0],
    }


def _published(name: str) -> tuple[str, ...]:
    name = rename(name, _NAMES)
    if ".gate_up." in name:
        return tuple(name.replace(".gate_up.", f".ffn.{part}_proj.") for part in ("gate", "up"))
    return (name,)


def _check_scales(state_dict: StateDict, scales: tuple[int, ...]) -> None:
    levels = state_dict.get("lvl_1L")
    if levels is None or levels.is_meta:
        return
    sides = tuple(math.isqrt(int(count)) for count in levels.flatten().long().bincount())
    if sides != scales:
        raise UserError(f"patch_nums: {scales} contradicts lvl_1L of the weights; give {sides}")


def _infer_causal(state_dict: StateDict, given: bool | None) -> bool:
    """Return whether tokens attend to coarser scales: the last one to the first."""
    mask = state_dict.get("attn_bias_for_masking")
    if mask is None or mask.is_meta:
        if given is None:
            raise UserError(
                "causal: the weights have no attn_bias_for_masking, which would tell; give True for Switti-AR"
            )
        return given
    actual = bool(mask[..., -1, 0] == 0)
    if given not in (None, actual):
        raise UserError(f"causal: {given} contradicts attn_bias_for_masking of the weights; give {actual}")
    return actual
