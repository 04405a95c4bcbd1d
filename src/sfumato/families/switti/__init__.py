"""Switti: next-scale generation from captions (Voronov et al., 2024)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.switti.generator import Switti
from sfumato.families.switti.network import SwittiConfig
from sfumato.families.switti.published import inspect_switti, read_switti, write_switti
from sfumato.families.switti.releases import RELEASES
from sfumato.families.vqvae import MultiScaleVQVAE, VQVAEConfig


def build(shape: Mapping[str, Any]) -> Switti:
    """Build a Switti model with initial weights."""
    tokenizer = MultiScaleVQVAE(shape_from(VQVAEConfig, shape["tokenizer"]))
    return Switti(shape_from(SwittiConfig, shape["transformer"]), tokenizer)


def describe(generator: Switti) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {"transformer": asdict(generator.config), "tokenizer": asdict(generator.tokenizer.config)}


def write(generator: Switti) -> dict[str, dict[str, Tensor]]:
    """Return state dicts with published names."""
    return dict(zip(("switti", "vqvae"), write_switti(generator), strict=True))


FAMILY = Family(
    name="switti",
    build=build,
    describe=describe,
    read=read_switti,
    write=write,
    inspect=inspect_switti,
    releases=RELEASES,
    blocks=lambda network: list(network.blocks),
    lora_targets=("qkv", "proj", "query", "key_value", "gate_up", "down"),
)
