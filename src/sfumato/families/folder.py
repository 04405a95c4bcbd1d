"""Model folders: `config.json` (shape and card), `transformer.safetensors` (the network), `tokenizer.safetensors`."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.files import write_text
from sfumato.policy import Card, Generator
from sfumato.settings import Settings

Shape = TypeVar("Shape")
PARTS = ("transformer", "tokenizer")
"""Names of the weight files, without extension: the network and the tokenizer."""


def shape_from(kind: type[Shape], values: Mapping[str, Any]) -> Shape:
    """Rebuild a dataclass from its JSON values; lists become tuples."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def write_folder(
    folder: Path,
    generator: Generator,
    shape: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
) -> None:
    """Write a model folder.

    Args:
        folder: where to write; it is created if it does not exist.
        generator: generator whose weights and card are written.
        shape: result of the family's `describe`.
        dtype: type of the floating-point weights in the files.
        tokenizer: existing file with the tokenizer's weights in this type; it is linked instead of written again,
            because the tokenizer is frozen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = generator.card
    config = {
        "family": card.family,
        **shape,
        "settings": dataclasses.asdict(card.settings),
        "judge": card.judge,
        "class_names": card.class_names,
    }
    write_text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_tensors(folder / "transformer.safetensors", generator.network, dtype)
    place = folder / "tokenizer.safetensors"
    if tokenizer is None or not link(tokenizer, place):
        write_tensors(place, generator.tokenizer, dtype)


def link(source: Path, target: Path) -> bool:
    """Create a hard link to a file; returns whether this succeeded."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True


def write_tensors(path: Path, module: nn.Module, dtype: torch.dtype) -> None:
    """Write a module's tensors as safetensors, with the floating-point ones in this type."""
    tensors = {name: cast(tensor, dtype) for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(tensors, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, converted to float32.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return {name: cast(tensor, torch.float32) for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model: {path} cannot be read ({reason}); it may be truncated; copy it again") from error


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor as contiguous; if it is floating-point, in this type."""
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load all tensors of a file into a module.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"model: {path} does not fit its config.json; copy both again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model: {folder}/config.json cannot be read ({error}); copy it again") from error


def card_from(config: Mapping[str, Any]) -> Card:
    """Return the card in a model folder's config.

    Version 0.1 stored the settings as "inference" and did not store a judge: the emoji classifier judged every model.
    """
    return Card(
        family=config["family"],
        class_names=tuple(config["class_names"]),
        settings=shape_from(Settings, config.get("settings") or config.get("inference") or {}),
        judge=config.get("judge", "emoji"),
    )
