"""Load the reference measurements in tests/golden."""

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sfumato.families import load_published
from sfumato.families.infinity.generator import Infinity
from sfumato.families.janus.generator import Janus
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.switti.generator import Switti
from sfumato.families.var.generator import VAR
from sfumato.request import CaptionFeatures, Request, TextInputs, TokenInputs, Words
from sfumato.testing import class_request, text_request

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "var_meta.json").read_text())
VARIANTS = ("a", "b", "c")
LLAMAGEN_META = json.loads((GOLDEN / "llamagen_meta.json").read_text())
LLAMAGEN_VARIANTS = ("c2i", "c2i_gqa", "t2i")
INFINITY_META = json.loads((GOLDEN / "infinity_meta.json").read_text())["variants"]
SWITTI_META = json.loads((GOLDEN / "switti_meta.json").read_text())["variants"]
JANUS_META = json.loads((GOLDEN / "janus_meta.json").read_text())["variants"]
SIMPLEAR_META = json.loads((GOLDEN / "simplear_meta.json").read_text())["variants"]
SIMPLEAR_VARIANTS = ("tied", "untied")
JANUS_VARIANTS = ("mha", "gqa")
SWITTI_VARIANTS = ("ar", "nonar")


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


@functools.cache
def infinity_data(name: str) -> dict[str, Tensor]:
    """Return tensors of an Infinity variant ("a", "p"): its outputs, or "a_vae", "a_weights", "a_vae_weights"."""
    return load_file(GOLDEN / f"infinity_{name}.safetensors")


def golden_infinity(variant: str, scales: Sequence[Sequence[int]] | None = None) -> Infinity:
    """Return a new Infinity model with the weights of a variant, in eval mode; with its own scales by default."""
    shape = INFINITY_META[variant]
    upright = scales is not None and scales[-1][0] != scales[-1][1]
    generator = load_published(
        "infinity",
        infinity_data(f"{variant}_weights"),
        infinity_data(f"{variant}_vae_weights"),
        num_heads=shape["generator"]["heads"],
        scales=scales or shape["schedule"],
        rotary_grid=(70, 56) if upright else (64, 64),
    )
    assert isinstance(generator, Infinity)
    return generator


def infinity_request(variant: str, prefix: str = "") -> Request:
    """Return the request for the images of an Infinity variant."""
    golden = infinity_data(variant)
    lengths = golden[f"{prefix}text_lengths"].tolist()
    return text_request(list(golden[f"{prefix}text_features"].split(lengths)))


@functools.cache
def switti_data(name: str) -> dict[str, Tensor]:
    """Return tensors of a Switti variant ("ar", "nonar"): its outputs, or "ar_weights"; or "text", "vqvae_weights"."""
    return load_file(GOLDEN / f"switti_{name}.safetensors")


def golden_switti(variant: str) -> Switti:
    """Return a new Switti model with the weights of a variant, in eval mode."""
    shape = SWITTI_META[variant]
    generator = load_published(
        "switti",
        switti_data(f"{variant}_weights"),
        switti_data("vqvae_weights"),
        patch_nums=shape["patch_nums"],
        num_heads=shape["heads"],
    )
    assert isinstance(generator, Switti)
    return generator


def switti_inputs() -> TextInputs:
    """Return the captions of the two images of both Switti variants; the last caption of the table is the empty one.

    The random vectors that stand for whole captions are not those of the last tokens, so they follow as padding.
    """
    text, tables = switti_data("text"), []
    for prefix in ("", "null_"):
        features, pooled, mask = (text[prefix + name] for name in ("prompt_embeds", "pooled", "attention_mask"))
        summary = F.pad(pooled, (features.shape[2] - pooled.shape[1], 0))[:, None]
        tables.append((torch.cat([features, summary], dim=1), F.pad(mask.bool(), (0, 1), value=False)))
    features, mask = (torch.cat(parts) for parts in zip(*tables, strict=True))
    table = CaptionFeatures(features=features, mask=mask)
    return TextInputs(rows=torch.tensor([0, 1]), captions=table, null_row=2)


@functools.cache
def janus_data(name: str) -> dict[str, Tensor]:
    """Return tensors of a Janus-Pro variant ("mha", "gqa"): its outputs, or "mha_weights"; or "vq", "vq_weights"."""
    return load_file(GOLDEN / f"janus_{name}.safetensors")


def golden_janus(variant: str) -> Janus:
    """Return a new Janus-Pro model with the weights of a variant, in eval mode."""
    weights = {**janus_data(f"{variant}_weights"), **janus_data("vq_weights")}
    generator = load_published("janus", weights, num_heads=4, grid_size=4, num_prompt_tokens=12)
    assert isinstance(generator, Janus)
    return generator


def janus_request(variant: str) -> Request:
    """Return the request for the four images of a Janus-Pro variant, whose prompts have 12 tokens or fewer."""
    golden, padding = janus_data(variant), JANUS_META[variant]["config"]["pad_id"]
    inputs = TokenInputs(
        rows=torch.arange(4), ids=golden["prompt_ids"], mask=golden["prompt_mask"].bool(), padding=padding
    )
    return Request(words=Words(names=("one", "two", "three", "four")), inputs=inputs)


@functools.cache
def simplear_data(name: str) -> dict[str, Tensor]:
    """Return tensors of a SimpleAR variant ("tied", "untied"): its outputs, or "tied_weights"; or "cosmos", "fsq"."""
    return load_file(GOLDEN / f"simplear_{name}.safetensors")


def golden_simplear(variant: str) -> SimpleAR:
    """Return a new SimpleAR model with the weights of a variant, in eval mode.

    Its vocabulary has 64 codes, so the tokenizer's channels have 2 values here.
    """
    weights = simplear_data(f"{variant}_weights")
    generator = load_published(
        "simplear", weights, simplear_data("cosmos_weights"),
        num_heads=4, grid_size=4, levels=(2,) * 6, num_prompt_tokens=11,
    )  # fmt: skip
    assert isinstance(generator, SimpleAR)
    return generator


def simplear_request(variant: str, unconditional: str = "negative") -> Request:
    """Return the request for the images of a SimpleAR variant; the unconditional prompt is "negative" or "null"."""
    golden = simplear_data(variant)
    lengths = golden["prompt_lengths"].tolist()
    prompts = [row[-length:].tolist() for row, length in zip(golden["prompt_ids"], lengths, strict=True)]
    table = TokenInputs.padded([*prompts, golden[f"{unconditional}_ids"].tolist()], padding=0)
    inputs = replace(table, rows=torch.arange(4), null_row=4)
    return Request(words=Words(names=("one", "two", "three", "four")), inputs=inputs)
