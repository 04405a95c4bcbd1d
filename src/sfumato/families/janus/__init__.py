"""Janus-Pro: next-token generation by a language model that reads prompts (Chen et al., 2025)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato.families.family import Family
from sfumato.families.folder import shape_from
from sfumato.families.janus.generator import Janus
from sfumato.families.janus.network import JanusConfig
from sfumato.families.janus.published import inspect_janus, read_janus, write_janus, write_port
from sfumato.families.janus.reasoning import ReasoningJanus, build_janus
from sfumato.families.janus.releases import RELEASES
from sfumato.families.language_model import TARGETS, import_transformers
from sfumato.families.vq import VQConfig, VQModel


def build(shape: Mapping[str, Any]) -> Janus | ReasoningJanus:
    """Build a Janus-Pro model with initial weights."""
    tokenizer = VQModel(shape_from(VQConfig, shape["tokenizer"]))
    return build_janus(shape_from(JanusConfig, shape["transformer"]), tokenizer)


def describe(generator: Janus | ReasoningJanus) -> dict[str, Any]:
    """Return the shapes that `build` needs."""
    return {"transformer": asdict(generator.config), "tokenizer": asdict(generator.tokenizer.config)}


def write(generator: Janus | ReasoningJanus) -> dict[str, dict[str, Tensor]]:
    """Return state dicts with the names of the original code, and with those of transformers' port."""
    return {"janus": write_janus(generator), "janus_transformers": write_port(generator)}


FAMILY = Family(
    name="janus",
    build=build,
    describe=describe,
    read=read_janus,
    write=write,
    inspect=inspect_janus,
    check_installed=import_transformers,
    releases=RELEASES,
    blocks=lambda network: list(network.model.layers),
    lora_targets=TARGETS,
)
