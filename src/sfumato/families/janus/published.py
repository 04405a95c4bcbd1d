"""Read and write Janus-Pro's published tensor names: those of the original code, and those of its port in transformers.

Upstream names occur only in the families' `published.py`.
"""

import re

import torch
from torch import Tensor

from sfumato.families.janus.generator import Janus
from sfumato.families.janus.network import JanusConfig
from sfumato.families.janus.reasoning import ReasoningJanus, build_janus
from sfumato.families.published import StateDict, count_of, load_strictly, published_state_dict, rename, shape_of
from sfumato.families.published_llama import infer_llama_shape
from sfumato.families.published_vq import infer_vq_config, load_vq, written_vq
from sfumato.families.vq import VQModel
from sfumato.policy import Card

_LLAMA = "language_model.model."
_VQ = "gen_vision_model."
_NAMES = {
    "code_embedding": "gen_embed",
    "aligner_in": "gen_aligner.layers.0",
    "aligner_out": "gen_aligner.layers.2",
    "head_in": "gen_head.output_mlp_projector",
    "head": "gen_head.vision_head",
    "text_head": "language_model.lm_head",
}
_UNUSED = re.compile(r"(vision_model|aligner)\.")
"""What only describing images needs: in both layouts, after `_original`."""
_UNUSED_WITHOUT_TEXT = re.compile(rf"{_UNUSED.pattern}|language_model\.lm_head\.")
"""What drawing without a text before the image does not need."""
_PORT = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
    (r"^gen_aligner\.layers\.2\.", "model.generation_aligner.hidden_layers.0."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^gen_vision_model\.encoder\.conv_blocks\.(\d+)\.res\.", r"model.vqmodel.encoder.down.\1.block."),
    (r"^gen_vision_model\.encoder\.conv_blocks\.", "model.vqmodel.encoder.down."),
    (r"^gen_vision_model\.decoder\.conv_blocks\.(\d+)\.res\.", r"model.vqmodel.decoder.up.\1.block."),
    (r"^gen_vision_model\.decoder\.conv_blocks\.", "model.vqmodel.decoder.up."),
    (r"^gen_vision_model\.(encoder|decoder)\.mid\.0\.", r"model.vqmodel.\1.mid.block_1."),
    (r"^gen_vision_model\.(encoder|decoder)\.mid\.1\.", r"model.vqmodel.\1.mid.attn_1."),
    (r"^gen_vision_model\.(encoder|decoder)\.mid\.2\.", r"model.vqmodel.\1.mid.block_2."),
    (r"^gen_vision_model\.", "model.vqmodel."),
)
_ORIGINAL = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.", "gen_head."),
    (r"^model\.vqmodel\.(encoder\.down|decoder\.up)\.(\d+)\.block\.", r"model.vqmodel.\1.\2.res."),
    (r"^model\.vqmodel\.encoder\.down\.", "gen_vision_model.encoder.conv_blocks."),
    (r"^model\.vqmodel\.decoder\.up\.", "gen_vision_model.decoder.conv_blocks."),
    (r"^model\.vqmodel\.(encoder|decoder)\.mid\.block_1\.", r"gen_vision_model.\1.mid.0."),
    (r"^model\.vqmodel\.(encoder|decoder)\.mid\.attn_1\.", r"gen_vision_model.\1.mid.1."),
    (r"^model\.vqmodel\.(encoder|decoder)\.mid\.block_2\.", r"gen_vision_model.\1.mid.2."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^model\.(vision_model|aligner)\.", r"\1."),
)


def read_janus(
    state_dict: StateDict,
    vq_state_dict: StateDict | None = None,
    *,
    num_heads: int,
    grid_size: int = 24,
    rope_base: float = 10000.0,
    norm_eps: float = 1e-6,
    norm_groups: int = 32,
    text_tokenizer: str = "deepseek-ai/Janus-Pro-1B",
    num_prompt_tokens: int = 256,
    num_reasoning_tokens: int = 0,
    end_token: int = 100001,
) -> Janus | ReasoningJanus:
    """Build a Janus-Pro model from a state dict with published names, of the original code or of transformers' port.

    The parts that only describe images are not loaded: `vision_model`, `aligner`, and, if there is no text before the
    image, the text head.

    Args:
        state_dict: tensors of the whole model, of any floating-point type; they are copied to float32.
        vq_state_dict: tensors that contain the image tokenizer, if the first ones do not.
        num_heads: number of attention heads.
        grid_size: side of the token map: 24 for 384 pixels.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon of the network's RMS norms.
        norm_groups: number of groups in the image tokenizer's group norms.
        text_tokenizer: hub id of the text tokenizer, or a folder with its `tokenizer.json`.
        num_prompt_tokens: maximum length of a prompt in text tokens; no weight depends on it.
        num_reasoning_tokens: maximum length of the text before the image in text tokens; 0 for none.
        end_token: id of the text token that ends this text.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or an argument contradicts the shapes.
    """
    state_dict = _original(state_dict)
    images = state_dict if vq_state_dict is None else _original(vq_state_dict)
    vq = {name.removeprefix(_VQ): tensor for name, tensor in images.items() if name.startswith(_VQ)}
    unused = _UNUSED if num_reasoning_tokens else _UNUSED_WITHOUT_TEXT
    network = {k: v for k, v in state_dict.items() if not k.startswith(_VQ) and not unused.match(k)}
    config = JanusConfig(
        **infer_llama_shape(network, _LLAMA, num_heads),
        text_vocab_size=shape_of(network, f"{_LLAMA}embed_tokens.weight", "weights")[0],
        code_width=shape_of(network, "gen_embed.weight", "weights")[1],
        num_prompt_tokens=num_prompt_tokens,
        num_reasoning_tokens=num_reasoning_tokens,
        end_token=end_token,
        text_tokenizer=text_tokenizer,
        rope_base=rope_base,
        norm_eps=norm_eps,
    )
    with torch.device("meta"):  # skips the computation of initial values
        tokenizer = VQModel(infer_vq_config(vq, grid_size=grid_size, norm_groups=norm_groups))
        generator = build_janus(config, tokenizer, Card(family="janus"))
    load_vq(tokenizer, vq)
    load_strictly(generator.network, network, _published, "weights")
    tokenizer.requires_grad_(False)
    return generator


def write_janus(generator: Janus | ReasoningJanus) -> dict[str, Tensor]:
    """Return the state dict with the names of the original code: all parts that draw images."""
    network = published_state_dict(generator.network, _published)
    return {**network, **{f"{_VQ}{name}": tensor for name, tensor in written_vq(generator.tokenizer).items()}}


def write_port(generator: Janus | ReasoningJanus) -> dict[str, Tensor]:
    """Return the state dict with the names of transformers' `JanusForConditionalGeneration`: all parts that draw
    images. (With `strict=False` it loads into the whole model. Its `encode` differs: it does not normalize codes.)"""
    tensors = write_janus(generator)
    del tensors[f"{_VQ}quantize.codebook_used"]
    return {rename(name, _PORT): tensor for name, tensor in tensors.items()}


def inspect_janus(state_dict: StateDict) -> dict[str, object]:
    """Return the depth and width, which distinguish the sizes of Janus-Pro."""
    state_dict = _original(state_dict)
    return {
        "depth": count_of(state_dict, r"language_model\.model\.layers\.(\d+)\."),
        "width": shape_of(state_dict, f"{_LLAMA}norm.weight", "weights")[0],
    }


def _original(state_dict: StateDict) -> StateDict:
    """Return tensors under the names of the original code, if they have those of transformers' port."""
    if not any(name.startswith("model.language_model.") for name in state_dict):
        return state_dict
    return {rename(name, _ORIGINAL): tensor for name, tensor in state_dict.items()}


def _published(name: str) -> tuple[str, ...]:
    module, _, kind = name.rpartition(".")
    return (f"{_NAMES[module]}.{kind}",) if module in _NAMES else (f"language_model.{name}",)
