"""VAR: next-scale generation (Tian et al., 2024)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.published import inspect_var, read_var, write_var
from sfumato.families.var.releases import RELEASES
from sfumato.families.vqvae import MultiScaleVQVAE, VQVAEConfig


def build(shape: Mapping[str, Any]) -> VAR:
    """Build a VAR model with initial weights."""
    tokenizer = MultiScaleVQVAE(shape_from(VQVAEConfig, shape["tokenizer"]))
    return VAR(shape_from(VARConfig, shape["transformer"]), tokenizer)


def describe(generator: VAR) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {"transformer": asdict(generator.config), "tokenizer": asdict(generator.tokenizer.config)}


def write(generator: VAR) -> dict[str, dict[str, Tensor]]:
    """Return state dicts with published names."""
    return dict(zip(("var", "vae"), write_var(generator), strict=True))


FAMILY = Family(
    name="var",
    build=build,
    describe=describe,
    read=read_var,
    write=write,
    inspect=inspect_var,
    releases=RELEASES,
    blocks=lambda network: list(network.blocks),
    lora_targets=("qkv", "proj", "fc1", "fc2"),
    network_shape=VARConfig,
    tokenizer_shape=VQVAEConfig,
)
