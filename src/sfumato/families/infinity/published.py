"""Read and write Infinity's published tensor names. Upstream names occur only in the families' `published.py`."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import InfinityConfig
from sfumato.families.infinity.tokenizer import BSQConfig, BSQTokenizer
from sfumato.families.published import (
    StateDict,
    count_of,
    infer_autoencoder,
    load_strictly,
    published_state_dict,
    rename,
    shape_of,
)
from sfumato.policy import Card

# Patterns in our names and their published replacements, applied in order.
_NAMES = (
    (r"^null_caption", "cfg_uncond"),
    (r"^pooling\.queries", "text_proj_for_sos.ca.mat_q"),
    (r"^pooling\.read", "text_proj_for_sos.ca.mat_kv"),
    (r"^pooling\.out", "text_proj_for_sos.ca.proj"),
    (r"^pooling\.", "text_proj_for_sos.ca."),
    (r"^text_in\.", "text_proj_for_ca.0."),
    (r"^text_out\.", "text_proj_for_ca.2."),
    (r"^start_position", "pos_start"),
    (r"^level_embedding", "lvl_embed"),
    (r"^code_projection", "word_embed"),
    (r"^shared_modulation", "shared_ada_lin.1"),
    (r"^head_modulation", "head_nm.ada_lin.1"),
    (r"\.modulation_offset", ".ada_gss"),
    (r"\.cross_norm\.", ".ca_norm."),
    (r"\.cross_attention\.query\.", ".ca.mat_q."),
    (r"\.cross_attention\.key_value\.", ".ca.mat_kv."),
    (r"\.cross_attention\.", ".ca."),
    (r"\.attention\.log_scale", ".sa.scale_mul_1H11"),
    (r"\.attention\.qkv", ".sa.mat_qkv"),
    (r"\.attention\.", ".sa."),
    (r"\.(fc[12])\.", r".ffn.\1."),
)
_AXES = {"pos_start": (1, 1), "mat_q": (1,), "ada_gss": (1, 1), "scale_mul_1H11": (1,)}
"""Axes of length 1 that the published tensors have before ours."""
_BUFFERS = re.compile(
    r"(^|\.)(zero_k_bias|lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen)$"
)
"""What a file may have besides weights: zeros and masks."""
_TOKENIZER_NAMES = (
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.", ".block."),
    (r"^(encoder\.down\.\d+)\.resample", r"\1.downsample"),
    (r"^(decoder\.up\.\d+)\.resample", r"\1.upsample"),
    (r"\.middle\.block(\d)", r".mid.block_\1"),
    (r"\.shortcut\.", ".nin_shortcut."),
)


def read_infinity(
    state_dict: StateDict,
    vae_state_dict: StateDict,
    *,
    num_heads: int,
    scales: Sequence[Sequence[int]],
    rotary_grid: Sequence[int],
    norm_eps: float = 1e-6,
    norm_groups: int = 32,
    text_encoder: str = "google/flan-t5-xl",
) -> Infinity:
    """Build an Infinity model from state dicts with published names; its shape is inferred from the tensors.

    No weight depends on the scales: the same file draws images of other sizes and aspect ratios with other scales.
    Those of the published aspect ratios are in `sfumato.families.infinity.schedules`.

    Args:
        state_dict: tensors of the transformer, of any floating-point type; they are copied to float32.
        vae_state_dict: tensors of the tokenizer, whose names may lack the suffixes `.conv` and `.norm`.
        num_heads: number of attention heads.
        scales: height and width of each token map, coarse to fine.
        rotary_grid: height and width of the grid of rotary positions: in all published models, of whatever size, the
            last of the 13 maps of their aspect ratio.
        norm_eps: epsilon of the transformer's norms.
        norm_groups: number of groups in the tokenizer's group norms.
        text_encoder: text encoder of the captions: a T5 by hub id or path.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or an argument contradicts the shapes.
    """
    sizes = tuple((int(height), int(width)) for height, width in scales)
    network = {k: v for k, v in state_dict.items() if not _BUFFERS.search(k)}
    vae = _shortened({k: v for k, v in vae_state_dict.items() if not k.endswith("lfq.mask")})
    bits = shape_of(network, "word_embed.weight", "weights")[1]
    base, multipliers, blocks, patch = infer_autoencoder(vae, "down", "block")
    channels = shape_of(vae, "encoder.conv_out.weight", "tokenizer")[0]
    if bits not in (channels, 4 * channels):
        raise UserError(
            f"tokenizer: its {channels} channels do not fit the {bits} bits of the model's tokens; give the tokenizer "
            f"with {bits} channels, or with {bits / 4:g}"
        )
    depth, chunks = depth_of(network), _chunks_of(network)
    first = _block_name(0, depth, chunks)
    config = InfinityConfig(
        depth=depth,
        width=shape_of(network, "pos_start", "weights")[-1],
        num_heads=num_heads,
        feed_forward_width=shape_of(network, f"{first}.ffn.fc1.weight", "weights")[0],
        caption_width=shape_of(network, "cfg_uncond", "weights")[1],
        num_caption_tokens=shape_of(network, "cfg_uncond", "weights")[0],
        text_encoder=text_encoder,
        rotary_grid=(int(rotary_grid[0]), int(rotary_grid[1])),
        num_levels=shape_of(network, "lvl_embed.weight", "weights")[0],
        block_chunks=chunks,
        norm_eps=norm_eps,
    )
    shape = BSQConfig(
        scales=sizes,
        latent_channels=channels,
        base_channels=base,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        patch=patch,
        token_patch=1 if bits == channels else 2,
        norm_groups=norm_groups,
    )
    with torch.device("meta"):  # skips the computation of initial values
        generator = Infinity(config, BSQTokenizer(shape), Card(family="infinity"))
    load_strictly(generator.tokenizer, vae, lambda name: (_published_vae(name, shape),), "tokenizer")
    load_strictly(generator.network, network, lambda name: (published_infinity(name, config),), "weights")
    generator.tokenizer.requires_grad_(False)
    return generator


def write_infinity(generator: Infinity) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state dicts of transformer and tokenizer with the published names and shapes, for the original code."""
    config, network = generator.config, {}
    for name, tensor in generator.network.state_dict().items():
        published = published_infinity(name, config)
        tensor = tensor.unsqueeze(-1) if published.endswith("scale_mul_1H11") else tensor
        network[published] = tensor[(None,) * len(_AXES.get(published.split(".")[-1], ()))]
    names = [_block_name(i, config.depth, config.block_chunks) for i in range(config.depth)]
    places = ["text_proj_for_sos.ca", *(f"{name}.{part}" for name in names for part in ("sa", "ca"))]
    network |= {f"{place}.zero_k_bias": torch.zeros(config.width) for place in places}
    shape = generator.tokenizer.config
    vae = published_state_dict(generator.tokenizer, lambda name: (_lengthened(_published_vae(name, shape)),))
    mask = 2 ** torch.arange(shape.latent_channels - 1, -1, -1)
    return network, {**vae, "quantizer.lfq.mask": mask, "quantize.lfq.mask": mask.clone()}


def inspect_infinity(state_dict: StateDict) -> dict[str, object]:
    """Return the depth, width and bits per token, which distinguish the sizes of Infinity."""
    return {
        "depth": depth_of(state_dict),
        "width": shape_of(state_dict, "pos_start", "weights")[-1],
        "bits": shape_of(state_dict, "word_embed.weight", "weights")[1],
    }


def depth_of(state_dict: StateDict) -> int:
    """Return the number of blocks in a published state dict, whose blocks may be in chunks."""
    chunks = _chunks_of(state_dict)
    if chunks == 1 and "blocks.0.ada_gss" in state_dict:
        return count_of(state_dict, r"blocks\.(\d+)\.")
    return chunks * count_of(state_dict, r"block_chunks\.0\.module\.(\d+)\.")


def published_infinity(name: str, config: InfinityConfig) -> str:
    """Return the published name of a tensor of the network."""

    def place(match: re.Match[str]) -> str:
        return _block_name(int(match[1]), config.depth, config.block_chunks)

    return re.sub(r"^blocks\.(\d+)", place, rename(name, _NAMES))


def _chunks_of(state_dict: StateDict) -> int:
    return max(1, count_of(state_dict, r"block_chunks\.(\d+)\."))


def _block_name(number: int, depth: int, chunks: int) -> str:
    if chunks == 1:
        return f"blocks.{number}"
    chunk, place = divmod(number, max(1, depth // chunks))
    return f"block_chunks.{chunk}.module.{place}"


def _published_vae(name: str, shape: BSQConfig) -> str:
    """Return the published name of a tensor of the tokenizer, without the suffix of its layer."""
    name, levels = rename(name, _TOKENIZER_NAMES), len(shape.channel_multipliers)
    # The published decoder numbers its levels from fine to coarse, although it runs them from coarse to fine.
    return re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)


def _shortened(vae: StateDict) -> StateDict:
    """Return the tensors of a tokenizer without the suffixes of its layers, which a file may lack."""
    if "encoder.conv_in.conv.weight" not in vae:
        return vae
    return {re.sub(r"\.(conv|norm)(\.\w+)$", r"\2", name): tensor for name, tensor in vae.items()}


def _lengthened(name: str) -> str:
    """Add the suffix of a layer: `norm1.weight` is `norm1.norm.weight`, and `conv1.weight` is `conv1.conv.weight`."""
    layer, _, kind = name.rpartition(".")
    return f"{layer}.{'norm' if 'norm' in layer.rpartition('.')[2] else 'conv'}.{kind}"
