"""SimpleAR: next-token generation by a language model with image codes in its vocabulary (Wang et al., 2025)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.language_model import TARGETS, import_transformers
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.simplear.network import SimpleARConfig
from sfumato.families.simplear.published import inspect_simplear, read_simplear, write_simplear
from sfumato.families.simplear.releases import RELEASES
from sfumato.families.simplear.tokenizer import CosmosConfig, CosmosTokenizer


def build(shape: Mapping[str, Any]) -> SimpleAR:
    """Build a SimpleAR model with initial weights."""
    tokenizer = CosmosTokenizer(shape_from(CosmosConfig, shape["tokenizer"]))
    return SimpleAR(shape_from(SimpleARConfig, shape["transformer"]), tokenizer)


def describe(generator: SimpleAR) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {"transformer": asdict(generator.config), "tokenizer": asdict(generator.tokenizer.config)}


def write(generator: SimpleAR) -> dict[str, dict[str, Tensor]]:
    """Return the state dict of the network with published names."""
    return {"simplear": write_simplear(generator)}


FAMILY = Family(
    name="simplear",
    build=build,
    describe=describe,
    read=read_simplear,
    write=write,
    inspect=inspect_simplear,
    check_installed=import_transformers,
    releases=RELEASES,
    blocks=lambda network: list(network.model.layers),
    lora_targets=TARGETS,
)
