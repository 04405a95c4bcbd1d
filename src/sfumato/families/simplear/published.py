"""Read and write SimpleAR's published tensor names. Upstream names occur only in the families' `published.py`, and in
`cosmos.py` those of the image tokenizer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.published import StateDict, count_of, load_strictly, shape_of
from sfumato.families.published_llama import infer_llama_shape
from sfumato.families.simplear.cosmos import infer_cosmos_config, load_cosmos
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.simplear.network import SimpleARConfig
from sfumato.families.simplear.tokenizer import CosmosTokenizer
from sfumato.policy import Card

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COSMOS = "encoder.conv_in.0.conv3d.weight"


def read_simplear(
    state_dict: StateDict,
    tokenizer_state_dict: StateDict,
    *,
    num_heads: int,
    grid_size: int = 64,
    levels: Sequence[int] = (8, 8, 8, 5, 5, 5),
    rope_base: float = 1000000.0,
    norm_eps: float = 1e-6,
    text_tokenizer: str = "Daniel0724/SimpleAR-0.5B-SFT",
    prompt: str = "inference",
    num_prompt_tokens: int = 256,
) -> SimpleAR:
    """Build a SimpleAR model from state dicts with published names; its shape is inferred from the tensors.

    Args:
        state_dict: tensors of the network, of any floating-point type; they are copied to float32. A file without
            `lm_head` has it tied to the embedding.
        tokenizer_state_dict: tensors of both files of NVIDIA's Cosmos-1.0 DV8x16x16 together.
        num_heads: number of attention heads.
        grid_size: side of the token map: 64 for 1024 pixels, 32 for 512. No weight depends on it.
        levels: number of values of each channel of a code.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon of the network's RMS norms.
        text_tokenizer: hub id of the text tokenizer, or a folder with its `tokenizer.json`.
        prompt: template of prompts: training, inference or rl.
        num_prompt_tokens: maximum length of a prompt in text tokens; no weight depends on it.

    Raises:
        UserError: a key is missing or unknown, a tensor has the wrong shape, or an argument contradicts the shapes.
    """
    if _COSMOS not in tokenizer_state_dict:
        raise UserError(
            "tokenizer: SimpleAR draws with NVIDIA's Cosmos-1.0-Tokenizer-DV8x16x16, which is not downloaded for you; "
            "give the folder of its encoder.jit and decoder.jit"
        )
    with torch.device("meta"):  # skips the computation of initial values
        tokenizer = CosmosTokenizer(
            infer_cosmos_config(tokenizer_state_dict, grid_size=grid_size, levels=tuple(levels))
        )
    size, codes = shape_of(state_dict, _EMBEDDING, "weights")[0], tokenizer.config.vocab_size
    if size <= codes:
        raise UserError(
            f"weights: a vocabulary of {size} has no text tokens before {codes} image codes; give SimpleAR's"
        )
    network, tied = dict(state_dict), _tied(state_dict)
    head = network.pop(_HEAD, network[_EMBEDDING])
    network[_EMBEDDING], network["code_embedding.weight"] = network[_EMBEDDING].split([size - codes, codes])
    if not tied:
        network["text_head.weight"], network["head.weight"] = head.split([size - codes, codes])
    config = SimpleARConfig(
        **infer_llama_shape(network, "model.", num_heads),
        text_vocab_size=size - codes,
        tied=tied,
        num_prompt_tokens=num_prompt_tokens,
        text_tokenizer=text_tokenizer,
        prompt=prompt,
        rope_base=rope_base,
        norm_eps=norm_eps,
    )
    with torch.device("meta"):
        generator = SimpleAR(config, tokenizer, Card(family="simplear"))
    load_cosmos(tokenizer, tokenizer_state_dict)
    load_strictly(generator.network, network, lambda name: (name,), "weights")
    tokenizer.requires_grad_(False)
    return generator


def write_simplear(generator: SimpleAR) -> dict[str, Tensor]:
    """Return the state dict of the network with the published names, for the original code and for transformers' Qwen2.

    The tokenizer is NVIDIA's, and frozen: it stays as it is.
    """
    tensors = dict(generator.network.state_dict())
    tensors[_EMBEDDING] = torch.cat([tensors[_EMBEDDING], tensors.pop("code_embedding.weight")])
    if not generator.config.tied:
        tensors[_HEAD] = torch.cat([tensors.pop("text_head.weight"), tensors.pop("head.weight")])
    return tensors


def inspect_simplear(state_dict: StateDict) -> dict[str, object]:
    """Return the depth and width, which distinguish the sizes of SimpleAR."""
    return {
        "depth": count_of(state_dict, r"model\.layers\.(\d+)\."),
        "width": shape_of(state_dict, "model.norm.weight", "weights")[0],
    }


def _tied(state_dict: StateDict) -> bool:
    """Return whether the head is the embedding; a file may contain it twice."""
    return _HEAD not in state_dict or torch.equal(state_dict[_HEAD], state_dict[_EMBEDDING])
