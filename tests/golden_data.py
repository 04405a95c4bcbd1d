"""Load the reference measurements in tests/golden."""

import functools
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from sfumato.families import load_published
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.var.generator import VAR
from sfumato.request import Request
from sfumato.testing import class_request, text_request

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "var_meta.json").read_text())
VARIANTS = ("a", "b", "c")
LLAMAGEN_META = json.loads((GOLDEN / "llamagen_meta.json").read_text())
LLAMAGEN_VARIANTS = ("c2i", "c2i_gqa", "t2i")


@functools.cache
def tokenizer_weights() -> dict[str, Tensor]:
    """Return the published state dict of the tokenizer."""
    parts = (load_file(GOLDEN / f"var_vqvae_{half}_weights.safetensors") for half in ("encoder", "decoder"))
    return {key: tensor for part in parts for key, tensor in part.items()}


@functools.cache
def transformer_weights(variant: str) -> dict[str, Tensor]:
    """Return the published state dict of a variant."""
    return load_file(GOLDEN / f"var_{variant}_weights.safetensors")


@functools.cache
def outputs(variant: str) -> dict[str, Tensor]:
    """Return the outputs of the reference implementation for a variant."""
    return load_file(GOLDEN / f"var_{variant}.safetensors")


def golden_var(variant: str) -> VAR:
    """Return a new generator with the weights of a variant."""
    shape = META["variants"][variant]
    generator = load_published(
        "var",
        transformer_weights(variant),
        tokenizer_weights(),
        patch_nums=shape["patch_nums"],
        num_heads=shape["heads"],
    )
    assert isinstance(generator, VAR)
    return generator


@functools.cache
def llamagen_weights(variant: str) -> dict[str, Tensor]:
    """Return the published state dict of a LlamaGen transformer."""
    return load_file(GOLDEN / f"llamagen_{variant}_weights.safetensors")


@functools.cache
def vq_weights(variant: str = "vq16") -> dict[str, Tensor]:
    """Return the published state dict of a LlamaGen tokenizer."""
    names = {"vq16": ("vq16_encoder", "vq16_decoder"), "vq8like": ("vq8like",)}[variant]
    parts = (load_file(GOLDEN / f"llamagen_{name}_weights.safetensors") for name in names)
    return {key: tensor for part in parts for key, tensor in part.items()}


@functools.cache
def llamagen_outputs(variant: str) -> dict[str, Tensor]:
    """Return the outputs of LlamaGen's reference implementation for a transformer or tokenizer variant."""
    return load_file(GOLDEN / f"llamagen_{variant}.safetensors")


def golden_llamagen(variant: str, guidance_interval: int = -1) -> LlamaGen:
    """Return a new LlamaGen model with the weights of a variant, in eval mode."""
    shape = LLAMAGEN_META["gpt"][variant]
    generator = load_published(
        "llamagen",
        llamagen_weights(variant),
        vq_weights(),
        num_heads=shape["n_head"],
        grid_size=shape["grid"],
        guidance_interval=guidance_interval,
    )
    assert isinstance(generator, LlamaGen)
    return generator


def llamagen_request(variant: str) -> Request:
    """Return the request for the four images of a LlamaGen variant."""
    golden = llamagen_outputs(variant)
    if variant != "t2i":
        return class_request(golden["labels"])
    return text_request(golden["caption_cond"], golden["caption_mask"], ("three", "eight", "five", "one"))
