"""Published checkpoints: upstream names to ours and back, strictly. Upstream names occur in this file alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from sfumato.models.var import VAR, VARConfig
from sfumato.models.vqvae import MultiScaleVQVAE, VQVAEConfig

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


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` or `.pth` file; files of VAR's own trainer are unwrapped.

    Pickles are read with `weights_only=True`: no code in the file is run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: {path} is not a file; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; the cause is kept
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights: {path} cannot be read ({reason}); is it truncated? download it again") from error
    if isinstance(content, dict) and isinstance(content.get("trainer"), dict):
        content = content["trainer"].get("var_wo_ddp")
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"weights: {path} holds no state dict; give a file of named tensors")
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
        ValueError: a key is missing, unknown or of another shape.
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
        published = _published_var(name)
        leading = {"pos_start": 1, "pos_1LC": 1, "ada_gss": 2, "scale_mul_1H11": 1}.get(published.split(".")[-1], 0)
        network[published] = tensor[(None,) * leading]
    network |= _derived_buffers(generator)
    num_levels = len(generator.tokenizer.config.channel_multipliers)
    tokenizer = {_published_vqvae(k, num_levels): v for k, v in generator.tokenizer.state_dict().items()}
    return network, tokenizer


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
    base, in_channels = _shape(state_dict, "encoder.conv_in.weight", "tokenizer")[:2]
    levels = range(_count(state_dict, r"encoder\.down\.(\d+)\."))
    widths = [_shape(state_dict, f"encoder.down.{i}.block.0.conv1.weight", "tokenizer")[0] for i in levels]
    return VQVAEConfig(
        scales=scales,
        vocab_size=vocab_size,
        latent_channels=latent_channels,
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=_count(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        patch=round((in_channels / 3) ** 0.5),
        norm_groups=norm_groups,
        num_phi=_count(state_dict, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        phi_ratio=phi_ratio,
    )


def _shape(state_dict: StateDict, key: str, field: str) -> tuple[int, ...]:
    if key not in state_dict:
        raise ValueError(f"{field}: the state dict has no {key!r}; give one with the published names")
    return tuple(state_dict[key].shape)


def _count(state_dict: StateDict, pattern: str) -> int:
    numbers = [int(m[1]) for m in (re.match(pattern, key) for key in state_dict) if m]
    return max(numbers, default=-1) + 1


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _published_var(name: str) -> str:
    return _rename(name, _VAR_NAMES)


def _published_vqvae(name: str, num_levels: int) -> str:
    name = _rename(name, _VQVAE_NAMES)
    # The published decoder numbers its levels from the finest, although it runs them from the coarsest.
    return re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{num_levels - 1 - int(m[1])}", name)


def _derived_buffers(generator: VAR) -> dict[str, Tensor]:
    """Buffers of the published state dict that follow from the shape."""
    transformer = generator.transformer
    blocked = torch.zeros(transformer.mask.shape).masked_fill(~transformer.mask.cpu(), -torch.inf)
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(generator.config.width) for i in range(generator.config.depth)}
    return {"lvl_1L": transformer.levels[None].cpu(), "attn_bias_for_masking": blocked[None, None], **zeros}


def _load_strictly(module: nn.Module, state_dict: StateDict, published, field: str) -> None:
    """Give `module` the tensors of `state_dict`, all of them and no others, as float32 copies."""
    ours = module.state_dict()
    theirs = {published(name): name for name in ours}
    missing, unknown = sorted(theirs.keys() - state_dict.keys()), sorted(state_dict.keys() - theirs.keys())
    if missing or unknown:
        raise ValueError(
            f"{field}: {len(missing)} keys are missing {missing[:3]} and {len(unknown)} unknown {unknown[:3]}; "
            "give the complete state dict of one published model"
        )
    tensors = {}
    for key, name in theirs.items():
        tensor = state_dict[key]
        # The published code gives some parameters leading axes of length 1.
        if tuple(s for s in tensor.shape if s > 1) != tuple(s for s in ours[name].shape if s > 1):
            raise ValueError(
                f"{field}: {key} has shape {tuple(tensor.shape)}, not {tuple(ours[name].shape)}; "
                "are the scales (patch_nums) or num_heads those of another model?"
            )
        tensors[name] = tensor.reshape(ours[name].shape).to(dtype=torch.float32, copy=True)
    module.load_state_dict(tensors, assign=True)
