"""Low-rank adapters in model folders: only the adapters are stored, and a reference to the base model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from sfumato.files import write_text


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Description of saved adapters, in a model folder's `config.json`."""

    base: Mapping[str, str | None]
    """arguments of `load_generator` for the model that they change"""
    rank: int
    alpha: int
    targets: tuple[str, ...]
    """last parts of the names of the layers that have one"""


def saved_name(name: str) -> str:
    """Return the name of an adapter's parameter in files, which is also peft's: without the name of the adapter."""
    return name.replace(".default.", ".")


@torch.no_grad()
def merged(base: Mapping[str, Tensor], adapters: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Return the base's tensors with alpha/rank · B A added to each weight W that has an adapter.

    Args:
        base: tensors of the base's network by name.
        adapters: A (r, C) and B (D, r) as NAME.lora_A.weight and NAME.lora_B.weight.
        adapter: their description.
    """
    result = dict(base)
    for name, down in adapters.items():
        layer, found, _ = name.partition(".lora_A.")
        if found:
            update = adapters[f"{layer}.lora_B.weight"] @ down
            result[f"{layer}.weight"] = base[f"{layer}.weight"] + adapter.alpha / adapter.rank * update
    return result


def write_peft(folder: Path, adapters: Mapping[str, Tensor], adapter: Adapter) -> None:
    """Write adapters in peft's own format: `PeftModel.from_pretrained(network, folder)` adds them to the base."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base["model"],
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": list(adapter.targets),
    }
    write_text(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")
    tensors = {f"base_model.model.{name}": tensor for name, tensor in adapters.items()}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
