"""Published checkpoints: upstream names to ours and back, strictly. Upstream names occur in this file alone."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.tokenizer import VQConfig, VQModel
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.tokenizer import MultiScaleVQVAE, VQVAEConfig

StateDict = Mapping[str, Tensor]

# Our names to the published ones, first match of each line applied in order.
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
_VQVAE_NAMES = (
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
_LLAMAGEN_NAMES = (
    (r"^class_embedding", "cls_embedding.embedding_table"),
    (r"^caption_in", "cls_embedding.cap_proj.fc1"),
    (r"^caption_out", "cls_embedding.cap_proj.fc2"),
    (r"^null_caption", "cls_embedding.uncond_embedding"),
    (r"^token_embedding", "tok_embeddings"),
    (r"^head", "output"),
    (r"^blocks\.", "layers."),
    (r"\.attention\.qkv", ".attention.wqkv"),
    (r"\.attention\.proj", ".attention.wo"),
    (r"\.feed_forward_norm", ".ffn_norm"),
    (r"\.down\.", ".feed_forward.w2."),
)
_VQ_NAMES = (
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
_VQ_USAGE = 65536  # length of the published tokenizer's usage counter, which inference ignores


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pth` or `.pt` file, in any of the published wrappings.

    Those are VAR's own trainer's, and LlamaGen's `model`, `module` and `state_dict`. Pickles are read with
    `weights_only=True`: no code in the file is run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights: {path} is not a file; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; the cause is kept
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"weights: {path} cannot be read ({reason}); is it truncated? download it again") from error
    if isinstance(content, dict) and isinstance(content.get("trainer"), dict):
        content = content["trainer"].get("var_wo_ddp")
    for wrapping in ("model", "module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
            break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"weights: {path} holds no state dict; give a file of named tensors")
    return content


def load_var(
    var_state_dict: StateDict,
    vqvae_state_dict: StateDict,
    *,
    patch_nums: Sequence[int],
    num_heads: int,
    norm_eps: float = 1e-6,
    phi_ratio: float = 0.5,
    norm_groups: int = 32,
    class_names: Sequence[str] | None = None,
    guidance: float = 0.0,
) -> VAR:
    """Build a VAR from state dicts with published names; what shapes tell is inferred from them.

    Args:
        var_state_dict: the transformer's tensors, of any floating type; they are copied to float32.
        vqvae_state_dict: the tokenizer's.
        patch_nums: side of each token map, coarse to fine.
        num_heads: attention heads.
        norm_eps: epsilon of the transformer's layer norms.
        phi_ratio: share of the convolution in the residual "phi" blocks.
        norm_groups: groups of the tokenizer's group norms.
        class_names: names of the classes; their numbers by default.
        guidance: strength of classifier-free guidance.

    Raises:
        UserError: a key is missing, unknown or of another shape.
    """
    scales = tuple(patch_nums)
    config = infer_var_config(var_state_dict, num_heads=num_heads, norm_eps=norm_eps)
    vqvae_config = infer_vqvae_config(vqvae_state_dict, scales=scales, phi_ratio=phi_ratio, norm_groups=norm_groups)
    with torch.device("meta"):  # no time is spent on initial values
        tokenizer = MultiScaleVQVAE(vqvae_config)
        generator = VAR(config, tokenizer, class_names=class_names, guidance=guidance)
    usage = vqvae_state_dict.get("quantize.ema_vocab_hit_SV")
    if usage is not None and usage.shape[0] != len(scales):
        # A hit counter, not a weight: the published loader, too, replaces it when the scales differ.
        vqvae_state_dict = {**vqvae_state_dict, "quantize.ema_vocab_hit_SV": torch.zeros(len(scales), usage.shape[1])}
    num_levels = len(vqvae_config.channel_multipliers)
    _load_strictly(tokenizer, vqvae_state_dict, lambda name: _published_vqvae(name, num_levels), "tokenizer")
    derived = _derived_buffers(generator).keys()
    network = {k: v for k, v in var_state_dict.items() if k not in derived}
    _load_strictly(generator.transformer, network, _published_var, "weights")
    tokenizer.requires_grad_(False)
    return generator


def export_var(generator: VAR) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of transformer and tokenizer with the published names and shapes, for the original code."""
    network = {}
    for name, tensor in generator.transformer.state_dict().items():
        (published,) = _published_var(name)
        leading = {"pos_start": 1, "pos_1LC": 1, "ada_gss": 2, "scale_mul_1H11": 1}.get(published.split(".")[-1], 0)
        network[published] = tensor[(None,) * leading]
    network |= _derived_buffers(generator)
    num_levels = len(generator.tokenizer.config.channel_multipliers)
    return network, _published_state_dict(generator.tokenizer, lambda name: _published_vqvae(name, num_levels))


def load_llamagen(
    gpt_state_dict: StateDict,
    vq_state_dict: StateDict,
    *,
    num_heads: int,
    grid_size: int = 16,
    norm_eps: float = 1e-5,
    rope_base: float = 10000.0,
    norm_groups: int = 32,
    class_names: Sequence[str] | None = None,
    text_encoder: str = "google/flan-t5-xl",
    guidance: float = 1.0,
    guidance_interval: int = -1,
) -> LlamaGen:
    """Build a LlamaGen from state dicts with published names; what shapes tell is inferred from them.

    Whether the model is class- or text-conditional, its widths and depth, and the number of key and value heads follow
    from the tensors. A stray `freqs_cis` (the rotary table), the caches of a model that was saved after drawing, and
    the tokenizer's usage counter are left aside.

    Args:
        gpt_state_dict: the transformer's tensors, of any floating type; they are copied to float32.
        vq_state_dict: the tokenizer's.
        num_heads: attention heads.
        grid_size: side of the token map: 16 for 256 pixels with VQ-16, 24 for 384.
        norm_eps: epsilon of the transformer's RMS norms.
        rope_base: base of the rotary frequencies.
        norm_groups: groups of the tokenizer's group norms.
        class_names: names of the classes; their numbers by default.
        text_encoder: what reads the captions of a text-conditional model: T5 by hub id or path.
        guidance: scale of classifier-free guidance; 1 is none.
        guidance_interval: as the published sampler's `cfg_interval`; -1 guides all tokens.

    Raises:
        UserError: a key is missing, unknown or of another shape.
    """
    gpt_state_dict = {k: v for k, v in gpt_state_dict.items() if k != "freqs_cis" and ".kv_cache." not in k}
    vq_state_dict = {k: v for k, v in vq_state_dict.items() if k != "quantize.codebook_used"}
    config = infer_llamagen_config(
        gpt_state_dict, num_heads=num_heads, norm_eps=norm_eps, rope_base=rope_base, text_encoder=text_encoder
    )
    with torch.device("meta"):  # no time is spent on initial values
        tokenizer = VQModel(infer_vq_config(vq_state_dict, grid_size=grid_size, norm_groups=norm_groups))
        generator = LlamaGen(config, tokenizer, class_names, guidance, guidance_interval)
    _load_strictly(tokenizer, vq_state_dict, _published_vq, "tokenizer")
    _load_strictly(generator.transformer, gpt_state_dict, _published_llamagen, "weights")
    tokenizer.requires_grad_(False)
    return generator


def export_llamagen(generator: LlamaGen) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of transformer and tokenizer with the published names and shapes, for the original code.

    Raises:
        UserError: the original code would not compute what this model does.
    """
    if generator.config.condition_at_origin:
        raise UserError("model: it has condition_at_origin, which the original code does not know; it stays in Sfumato")
    tokenizer = _published_state_dict(generator.tokenizer, _published_vq)
    tokenizer["quantize.codebook_used"] = torch.zeros(_VQ_USAGE)
    return _published_state_dict(generator.transformer, _published_llamagen), tokenizer


def infer_llamagen_config(
    state_dict: StateDict,
    *,
    num_heads: int,
    norm_eps: float = 1e-5,
    rope_base: float = 10000.0,
    text_encoder: str = "google/flan-t5-xl",
) -> LlamaGenConfig:
    """The transformer's shape, read from a state dict with published names."""
    width = _shape(state_dict, "norm.weight", "weights")[0]
    rows = _shape(state_dict, "layers.0.attention.wqkv.weight", "weights")[0]
    is_text = "cls_embedding.cap_proj.fc1.weight" in state_dict
    classes = 0 if is_text else _shape(state_dict, "cls_embedding.embedding_table.weight", "weights")[0] - 1
    longest, caption_width = _shape(state_dict, "cls_embedding.uncond_embedding", "weights") if is_text else (0, 0)
    return LlamaGenConfig(
        depth=_count(state_dict, r"layers\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        num_kv_heads=(rows - width) // 2 // (width // num_heads),
        feed_forward_width=_shape(state_dict, "layers.0.feed_forward.w1.weight", "weights")[0],
        num_classes=classes,
        caption_width=caption_width,
        num_caption_tokens=longest,
        text_encoder=text_encoder if is_text else "",
        rope_base=rope_base,
        norm_eps=norm_eps,
    )


def infer_vq_config(state_dict: StateDict, *, grid_size: int, norm_groups: int = 32) -> VQConfig:
    """The tokenizer's shape, read from a state dict with published names."""
    vocab_size, code_width = _shape(state_dict, "quantize.embedding.weight", "tokenizer")
    base, multipliers, blocks, patch = _infer_autoencoder(state_dict, "conv_blocks", "res")
    return VQConfig(
        grid_size=grid_size,
        vocab_size=vocab_size,
        code_width=code_width,
        latent_channels=_shape(state_dict, "encoder.conv_out.weight", "tokenizer")[0],
        base_channels=base,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        patch=patch,
        norm_groups=norm_groups,
    )


def infer_var_config(state_dict: StateDict, *, num_heads: int, norm_eps: float = 1e-6) -> VARConfig:
    """The transformer's shape, read from a state dict with published names."""
    width = _shape(state_dict, "pos_start", "weights")[-1]
    return VARConfig(
        depth=_count(state_dict, r"blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        mlp_ratio=_shape(state_dict, "blocks.0.ffn.fc1.weight", "weights")[0] / width,
        num_classes=_shape(state_dict, "class_emb.weight", "weights")[0] - 1,
        shared_adaln="shared_ada_lin.1.weight" in state_dict,
        l2_attention="blocks.0.attn.scale_mul_1H11" in state_dict,
        norm_eps=norm_eps,
    )


def infer_vqvae_config(
    state_dict: StateDict, *, scales: tuple[int, ...], phi_ratio: float = 0.5, norm_groups: int = 32
) -> VQVAEConfig:
    """The tokenizer's shape, read from a state dict with published names."""
    vocab_size, latent_channels = _shape(state_dict, "quantize.embedding.weight", "tokenizer")
    base, multipliers, blocks, patch = _infer_autoencoder(state_dict, "down", "block")
    return VQVAEConfig(
        scales=scales,
        vocab_size=vocab_size,
        latent_channels=latent_channels,
        base_channels=base,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        patch=patch,
        norm_groups=norm_groups,
        num_phi=_count(state_dict, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        phi_ratio=phi_ratio,
    )


def _infer_autoencoder(state_dict: StateDict, level: str, block: str) -> tuple[int, tuple[int, ...], int, int]:
    """Base channels, multipliers, residual blocks a level and patch, from the encoder with these published names."""
    base, in_channels = _shape(state_dict, "encoder.conv_in.weight", "tokenizer")[:2]
    levels = range(_count(state_dict, rf"encoder\.{level}\.(\d+)\."))
    widths = [_shape(state_dict, f"encoder.{level}.{i}.{block}.0.conv1.weight", "tokenizer")[0] for i in levels]
    num_blocks = _count(state_dict, rf"encoder\.{level}\.0\.{block}\.(\d+)\.")
    return base, tuple(width // base for width in widths), num_blocks, round((in_channels / 3) ** 0.5)


def _shape(state_dict: StateDict, key: str, field: str) -> tuple[int, ...]:
    if key not in state_dict:
        raise UserError(f"{field}: the state dict has no {key!r}; give one with the published names")
    return tuple(state_dict[key].shape)


def _count(state_dict: StateDict, pattern: str) -> int:
    numbers = [int(m[1]) for m in (re.match(pattern, key) for key in state_dict) if m]
    return max(numbers, default=-1) + 1


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _published_var(name: str) -> tuple[str, ...]:
    return (_rename(name, _VAR_NAMES),)


def _published_vqvae(name: str, num_levels: int) -> tuple[str, ...]:
    name = _rename(name, _VQVAE_NAMES)
    # The published decoder numbers its levels from the finest, although it runs them from the coarsest.
    return (re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{num_levels - 1 - int(m[1])}", name),)


def _published_llamagen(name: str) -> tuple[str, ...]:
    name = _rename(name, _LLAMAGEN_NAMES)
    if ".gate_up." in name:
        return tuple(name.replace(".gate_up.", f".feed_forward.{part}.") for part in ("w1", "w3"))
    return (name,)


def _published_vq(name: str) -> tuple[str, ...]:
    name = _rename(name, _VQ_NAMES)
    if ".qkv." in name:
        return tuple(name.replace(".qkv.", f".{part}.") for part in "qkv")
    return (name,)


def _derived_buffers(generator: VAR) -> dict[str, Tensor]:
    """Buffers of the published state dict that follow from the shape."""
    transformer = generator.transformer
    blocked = torch.zeros(transformer.mask.shape).masked_fill(~transformer.mask.cpu(), -torch.inf)
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(generator.config.width) for i in range(generator.config.depth)}
    return {"lvl_1L": transformer.levels[None].cpu(), "attn_bias_for_masking": blocked[None, None], **zeros}


Published = Callable[[str], tuple[str, ...]]
"""Published names of one of our tensors: more than one if ours joins them along the first axis."""


def _published_state_dict(module: nn.Module, published: Published) -> dict[str, Tensor]:
    """The module's tensors under their published names; joined ones are parted again."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        names = published(name)
        tensors |= zip(names, tensor.chunk(len(names)), strict=True)
    return tensors


def _load_strictly(module: nn.Module, state_dict: StateDict, published: Published, field: str) -> None:
    """Give `module` the tensors of `state_dict`, all of them and no others, as float32 copies."""
    ours = module.state_dict()
    theirs = {key for name in ours for key in published(name)}
    missing, unknown = sorted(theirs - state_dict.keys()), sorted(state_dict.keys() - theirs)
    if missing or unknown:
        raise UserError(
            f"{field}: {len(missing)} keys are missing {missing[:3]} and {len(unknown)} unknown {unknown[:3]}; "
            "give the complete state dict of one published model"
        )
    tensors = {}
    for name, own in ours.items():
        keys = published(name)
        parts = [state_dict[key].detach() for key in keys]  # a file may hold parameters
        expected = (own.shape[0] // len(keys), *own.shape[1:]) if own.ndim else ()
        for key, part in zip(keys, parts, strict=True):
            # The published code gives some parameters leading or trailing axes of length 1.
            if tuple(s for s in part.shape if s > 1) != tuple(s for s in expected if s > 1):
                raise UserError(
                    f"{field}: {key} has shape {tuple(part.shape)}, not {tuple(expected)}; are num_heads, the "
                    "scales (patch_nums) or the grid those of another model?"
                )
        joined = torch.cat([part.reshape(expected) for part in parts])
        tensors[name] = joined.to(dtype=torch.float32, copy=len(parts) == 1)
    module.load_state_dict(tensors, assign=True)
