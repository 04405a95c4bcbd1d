"""Read and write LlamaGen's published tensor names. Upstream names occur only in the families' `published.py`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.published import (
    StateDict,
    count_of,
    load_strictly,
    published_state_dict,
    rename,
    shape_of,
)
from sfumato.families.published_vq import infer_vq_config, load_vq, written_vq
from sfumato.families.vq import VQModel
from sfumato.policy import Card

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


def read_llamagen(
    gpt_state_dict: StateDict,
    vq_state_dict: StateDict,
    *,
    num_heads: int,
    grid_size: int | None = None,
    norm_eps: float = 1e-5,
    rope_base: float = 10000.0,
    norm_groups: int = 32,
    class_names: Sequence[str] | None = None,
    text_encoder: str = "google/flan-t5-xl",
    guidance_interval: int = -1,
) -> LlamaGen:
    """Build a LlamaGen model from state dicts with published names.

    The kind of condition (class or text), widths, depth, and the number of key and value heads are inferred from the
    tensors. Key-value caches, which a model saved after sampling contains, and the tokenizer's usage counter are
    ignored.

    No weight depends on the grid size: weights for 256 and for 384 pixels have the same shapes. If the tensors include
    `freqs_cis` (the rotary table), it determines the grid size. Otherwise the given size is checked against the tokens
    and images that the model has to score.

    Args:
        gpt_state_dict: tensors of the transformer, of any floating-point type; they are copied to float32.
        vq_state_dict: tensors of the tokenizer.
        num_heads: number of attention heads.
        grid_size: side of the token map: 16 for 256 pixels with VQ-16, 24 for 384. By default the size from
            `freqs_cis`, or 16 without that tensor.
        norm_eps: epsilon of the transformer's RMS norms.
        rope_base: base of the rotary frequencies.
        norm_groups: number of groups in the tokenizer's group norms.
        class_names: names of the classes; the numbers by default.
        text_encoder: text encoder of a text-conditional model: a T5 by hub id or path.
        guidance_interval: `cfg_interval` of the published sampler; -1 guides all tokens.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or an argument contradicts the shapes.
    """
    grid_size = infer_grid_size(gpt_state_dict, num_heads=num_heads, given=grid_size)
    gpt_state_dict = {k: v for k, v in gpt_state_dict.items() if k != "freqs_cis" and ".kv_cache." not in k}
    config = infer_llamagen_config(
        gpt_state_dict, num_heads=num_heads, norm_eps=norm_eps, rope_base=rope_base, text_encoder=text_encoder
    )
    with torch.device("meta"):  # skips the computation of initial values
        tokenizer = VQModel(infer_vq_config(vq_state_dict, grid_size=grid_size, norm_groups=norm_groups))
        card = Card(family="llamagen", class_names=tuple(class_names or ()))
        generator = LlamaGen(config, tokenizer, card, guidance_interval)
    load_vq(tokenizer, vq_state_dict)
    load_strictly(generator.network, gpt_state_dict, _published_llamagen, "weights")
    tokenizer.requires_grad_(False)
    return generator


def write_llamagen(generator: LlamaGen) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state dicts of transformer and tokenizer with the published names and shapes, for the original code.

    Raises:
        UserError: the original code cannot run this model.
    """
    if generator.config.condition_at_origin:
        raise UserError(
            "model: condition_at_origin is set, which the original code does not support; this model cannot be exported"
        )
    return published_state_dict(generator.network, _published_llamagen), written_vq(generator.tokenizer)


def infer_llamagen_config(
    state_dict: StateDict,
    *,
    num_heads: int,
    norm_eps: float = 1e-5,
    rope_base: float = 10000.0,
    text_encoder: str = "google/flan-t5-xl",
) -> LlamaGenConfig:
    """Infer the shape of the transformer from a state dict with published names."""
    width = shape_of(state_dict, "norm.weight", "weights")[0]
    rows = shape_of(state_dict, "layers.0.attention.wqkv.weight", "weights")[0]
    is_text = _is_text(state_dict)
    classes = 0 if is_text else shape_of(state_dict, "cls_embedding.embedding_table.weight", "weights")[0] - 1
    longest, caption_width = shape_of(state_dict, "cls_embedding.uncond_embedding", "weights") if is_text else (0, 0)
    if width % num_heads or (rows - width) % (2 * (width // num_heads)):
        raise UserError(
            f"num_heads: {num_heads} heads do not fit the width {width} and the {rows} rows of the queries, keys and "
            "values; give the model's number of attention heads"
        )
    return LlamaGenConfig(
        depth=count_of(state_dict, r"layers\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        num_kv_heads=(rows - width) // 2 // (width // num_heads),
        feed_forward_width=shape_of(state_dict, "layers.0.feed_forward.w1.weight", "weights")[0],
        num_classes=classes,
        caption_width=caption_width,
        num_caption_tokens=longest,
        text_encoder=text_encoder if is_text else "",
        rope_base=rope_base,
        norm_eps=norm_eps,
    )


def infer_grid_size(state_dict: StateDict, *, num_heads: int, given: int | None) -> int:
    """Return the side of the token map, from the rotary table if the state dict has one.

    Raises:
        UserError: the given size or the number of heads contradicts the table.
    """
    if "freqs_cis" not in state_dict:
        return 16 if given is None else given
    positions, pairs, _ = shape_of(state_dict, "freqs_cis", "weights")
    width = shape_of(state_dict, "norm.weight", "weights")[0]
    if width != 2 * pairs * num_heads:
        raise UserError(
            f"num_heads: {num_heads} contradicts freqs_cis, whose heads are {2 * pairs} wide; "
            f"give {width // (2 * pairs)}"
        )
    condition = shape_of(state_dict, "cls_embedding.uncond_embedding", "weights")[0] if _is_text(state_dict) else 1
    side = math.isqrt(positions - condition)
    if given not in (None, side):
        raise UserError(f"grid_size: {given} contradicts freqs_cis, which has {side}×{side} image tokens; give {side}")
    return side


def _is_text(state_dict: StateDict) -> bool:
    return "cls_embedding.cap_proj.fc1.weight" in state_dict


def _published_llamagen(name: str) -> tuple[str, ...]:
    name = rename(name, _LLAMAGEN_NAMES)
    if ".gate_up." in name:
        return tuple(name.replace(".gate_up.", f".feed_forward.{part}.") for part in ("w1", "w3"))
    return (name,)


def inspect_llamagen(state_dict: StateDict) -> dict[str, object]:
    """Return the depth, width and kind of condition, which distinguish the sizes of LlamaGen."""
    return {
        "depth": count_of(state_dict, r"layers\.(\d+)\."),
        "width": shape_of(state_dict, "norm.weight", "weights")[0],
        "condition": "text" if _is_text(state_dict) else "class",
    }
