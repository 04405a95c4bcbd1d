"""Access to the measurements in tests/golden."""

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.published import load_llamagen, load_var
from sfumato.families.var.generator import VAR
from sfumato.rollout import CaptionFeatures, Conditions

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "var_meta.json").read_text())
VARIANTS = ("a", "b", "c")
LLAMAGEN_META = json.loads((GOLDEN / "llamagen_meta.json").read_text())
LLAMAGEN_VARIANTS = ("c2i", "c2i_gqa", "t2i")


@functools.cache
def tokenizer_weights() -> dict[str, Tensor]:
    """The tokenizer's published state dict."""
    parts = (load_file(GOLDEN / f"var_vqvae_{half}_weights.safetensors") for half in ("encoder", "decoder"))
    return {key: tensor for part in parts for key, tensor in part.items()}


@functools.cache
def transformer_weights(variant: str) -> dict[str, Tensor]:
    """A variant's published state dict."""
    return load_file(GOLDEN / f"var_{variant}_weights.safetensors")


@functools.cache
def outputs(variant: str) -> dict[str, Tensor]:
    """What the reference implementation computed."""
    return load_file(GOLDEN / f"var_{variant}.safetensors")


def golden_var(variant: str, guidance: float = 0.0) -> VAR:
    """A fresh generator with a variant's weights."""
    shape = META["variants"][variant]
    return load_var(
        transformer_weights(variant),
        tokenizer_weights(),
        patch_nums=shape["patch_nums"],
        num_heads=shape["heads"],
        guidance=guidance,
    )


@functools.cache
def llamagen_weights(variant: str) -> dict[str, Tensor]:
    """A LlamaGen transformer's published state dict."""
    return load_file(GOLDEN / f"llamagen_{variant}_weights.safetensors")


@functools.cache
def vq_weights(variant: str = "vq16") -> dict[str, Tensor]:
    """A LlamaGen tokenizer's published state dict."""
    names = {"vq16": ("vq16_encoder", "vq16_decoder"), "vq8like": ("vq8like",)}[variant]
    parts = (load_file(GOLDEN / f"llamagen_{name}_weights.safetensors") for name in names)
    return {key: tensor for part in parts for key, tensor in part.items()}


@functools.cache
def llamagen_outputs(variant: str) -> dict[str, Tensor]:
    """What LlamaGen's reference implementation computed: a transformer's or a tokenizer's variant."""
    return load_file(GOLDEN / f"llamagen_{variant}.safetensors")


def golden_llamagen(variant: str, guidance: float = 1.0, guidance_interval: int = -1) -> LlamaGen:
    """A fresh LlamaGen with a variant's weights, in eval mode."""
    shape = LLAMAGEN_META["gpt"][variant]
    generator = load_llamagen(
        llamagen_weights(variant),
        vq_weights(),
        num_heads=shape["n_head"],
        grid_size=shape["grid"],
        guidance=guidance,
        guidance_interval=guidance_interval,
    )
    return generator.eval()


def llamagen_conditions(variant: str) -> Conditions:
    """What the four images of a LlamaGen variant were conditioned on."""
    golden = llamagen_outputs(variant)
    if variant != "t2i":
        return Conditions(labels=golden["labels"], names=tuple(map(str, golden["labels"].tolist())))
    text = CaptionFeatures(features=golden["caption_cond"], mask=golden["caption_mask"].bool())
    return Conditions(labels=torch.arange(4), names=("three", "eight", "five", "one"), text=text)
