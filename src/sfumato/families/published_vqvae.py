"""Read and write the published tensor names of the multi-scale tokenizer, which VAR and Switti share."""

import re

import torch
from torch import Tensor

from sfumato.families.published import (
    StateDict,
    count_of,
    infer_autoencoder,
    load_strictly,
    published_state_dict,
    rename,
    shape_of,
)
from sfumato.families.vqvae import MultiScaleVQVAE, VQVAEConfig

# Patterns in our names and their published replacements, applied in order.
_NAMES = (
    (r"^pre_conv", "quant_conv"),
    (r"^post_conv", "post_quant_conv"),
    (r"^quantizer\.codebook", "quantize.embedding"),
    (r"^quantizer\.phi", "quantize.quant_resi.qresi_ls"),
    (r"^quantizer\.usage", "quantize.ema_vocab_hit_SV"),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"^(encoder\.down\.\d+)\.resample", r"\1.downsample"),
    (r"^(decoder\.up\.\d+)\.resample", r"\1.upsample"),
    (r"\.middle\.block(\d)", r".mid.block_\1"),
    (r"\.middle\.attention", ".mid.attn_1"),
    (r"\.proj\.", ".proj_out."),
    (r"\.shortcut\.", ".nin_shortcut."),
)


def load_vqvae(tokenizer: MultiScaleVQVAE, state_dict: StateDict) -> None:
    """Load a state dict with published names as float32 copies; names must match exactly.

    Raises:
        UserError: names or shapes differ.
    """
    usage, count = state_dict.get("quantize.ema_vocab_hit_SV"), len(tokenizer.config.scales)
    if usage is not None and usage.shape[0] != count:
        # This is a hit counter, not a weight. The published loader also replaces it when the scales differ.
        state_dict = {**state_dict, "quantize.ema_vocab_hit_SV": torch.zeros(count, usage.shape[1])}
    levels = len(tokenizer.config.channel_multipliers)
    load_strictly(tokenizer, state_dict, lambda name: _published(name, levels), "tokenizer")


def written_vqvae(tokenizer: MultiScaleVQVAE) -> dict[str, Tensor]:
    """Return the tensors under their published names."""
    levels = len(tokenizer.config.channel_multipliers)
    return published_state_dict(tokenizer, lambda name: _published(name, levels))


def infer_vqvae_config(
    state_dict: StateDict, *, scales: tuple[int, ...], phi_ratio: float = 0.5, norm_groups: int = 32
) -> VQVAEConfig:
    """Infer the shape of the tokenizer from a state dict with published names."""
    vocab_size, latent_channels = shape_of(state_dict, "quantize.embedding.weight", "tokenizer")
    base, multipliers, blocks, patch = infer_autoencoder(state_dict, "down", "block")
    return VQVAEConfig(
        scales=scales,
        vocab_size=vocab_size,
        latent_channels=latent_channels,
        base_channels=base,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        patch=patch,
        norm_groups=norm_groups,
        num_phi=count_of(state_dict, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        phi_ratio=phi_ratio,
    )


def _published(name: str, num_levels: int) -> tuple[str, ...]:
    name = rename(name, _NAMES)
    # The published decoder numbers its levels from fine to coarse, although it runs them from coarse to fine.
    return (re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{num_levels - 1 - int(m[1])}", name),)
