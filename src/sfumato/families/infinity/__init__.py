"""Infinity: bitwise next-scale generation from captions (Han et al., 2024)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import InfinityConfig
from sfumato.families.infinity.published import inspect_infinity, read_infinity, write_infinity
from sfumato.families.infinity.releases import RELEASES
from sfumato.families.infinity.tokenizer import BSQConfig, BSQTokenizer


def build(shape: Mapping[str, Any]) -> Infinity:
    """Build an Infinity model with initial weights."""
    tokenizer = BSQTokenizer(shape_from(BSQConfig, shape["tokenizer"]))
    return Infinity(shape_from(InfinityConfig, shape["transformer"]), tokenizer)


def describe(generator: Infinity) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {"transformer": asdict(generator.config), "tokenizer": asdict(generator.tokenizer.config)}


def write(generator: Infinity) -> dict[str, dict[str, Tensor]]:
    """Return state dicts with published names."""
    return dict(zip(("infinity", "vae"), write_infinity(generator), strict=True))


FAMILY = Family(
    name="infinity",
    build=build,
    describe=describe,
    read=read_infinity,
    write=write,
    wrapping={"vae": "vae"},
    inspect=inspect_infinity,
    releases=RELEASES,
    blocks=lambda network: list(network.blocks),
    lora_targets=("qkv", "proj", "query", "key_value", "fc1", "fc2"),
    network_shape=InfinityConfig,
    tokenizer_shape=BSQConfig,
)
