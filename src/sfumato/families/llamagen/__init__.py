"""LlamaGen: next-token generation from classes or captions (Sun et al., 2024)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.published import inspect_llamagen, read_llamagen, write_llamagen
from sfumato.families.llamagen.releases import RELEASES
from sfumato.families.vq import VQConfig, VQModel


def build(shape: Mapping[str, Any]) -> LlamaGen:
    """Build a LlamaGen model with initial weights."""
    tokenizer = VQModel(shape_from(VQConfig, shape["tokenizer"]))
    config = shape_from(LlamaGenConfig, shape["transformer"])
    return LlamaGen(config, tokenizer, guidance_interval=shape.get("guidance_interval", -1))


def describe(generator: LlamaGen) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {
        "transformer": asdict(generator.config),
        "tokenizer": asdict(generator.tokenizer.config),
        "guidance_interval": generator.guidance_interval,
    }


def write(generator: LlamaGen) -> dict[str, dict[str, Tensor]]:
    """Return state dicts with published names."""
    return dict(zip(("gpt", "vq"), write_llamagen(generator), strict=True))


FAMILY = Family(
    name="llamagen",
    build=build,
    describe=describe,
    read=read_llamagen,
    write=write,
    wrapping={"gpt": "model", "vq": "model"},
    inspect=inspect_llamagen,
    releases=RELEASES,
    blocks=lambda network: list(network.blocks),
    lora_targets=("qkv", "proj", "gate_up", "down"),
    network_shape=LlamaGenConfig,
    tokenizer_shape=VQConfig,
)
