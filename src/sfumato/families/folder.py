"""Model folders: `config.json` (shape and card), `transformer.safetensors` (the network), `tokenizer.safetensors`.

A checkpoint may have adapters instead of the network, and averages of either under a name that ends in `_ema`.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.adapters import Adapter
from sfumato.families.weight_files import check_is_weights
from sfumato.files import write_text
from sfumato.policy import Card, Generator
from sfumato.settings import Settings

Shape = TypeVar("Shape")
PARTS = ("transformer", "tokenizer")
"""Names of the weight files, without extension: the network and the tokenizer."""


@contextmanager
def described_in(folder: Path) -> Iterator[None]:
    """Turn the errors of a block that builds what a model folder's `config.json` describes into errors of this file.

    Raises:
        UserError: a value is missing, unknown, of the wrong type or out of range.
    """
    try:
        yield
    except (UserError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError) and error.field == "model":  # it names the file at fault itself
            raise
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"model: {folder}/config.json does not describe a generator ({reason}); copy it again"
        ) from error


def shape_from(kind: type[Shape], values: Mapping[str, Any]) -> Shape:
    """Rebuild a dataclass from its JSON values; lists become tuples."""
    return kind(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """Return the value with all lists in it as tuples, which JSON stores as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_folder(
    folder: Path,
    generator: Generator,
    shape: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
    parts: Mapping[str, Mapping[str, Tensor]] | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Write a model folder.

    Args:
        folder: where to write; it is created if it does not exist.
        generator: generator whose weights and card are written.
        shape: result of the family's `describe`.
        dtype: type of the floating-point weights in the files.
        tokenizer: existing file with the tokenizer's weights in this type; it is linked instead of written again,
            because the tokenizer is frozen.
        parts: tensors to write instead of the network's, by file name without extension.
        adapter: description of the adapters, if the tensors are those of adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = generator.card
    config = {
        "family": card.family,
        **shape,
        "settings": dataclasses.asdict(card.settings),
        "judge": card.judge,
        "class_names": card.class_names,
        **({} if adapter is None else {"adapter": dataclasses.asdict(adapter)}),
    }
    write_text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    for name, tensors in ({"transformer": generator.network.state_dict()} if parts is None else parts).items():
        write_tensors(folder / f"{name}.safetensors", tensors, dtype)
    place = folder / "tokenizer.safetensors"
    if tokenizer is None or not link(tokenizer, place):
        write_tensors(place, generator.tokenizer.state_dict(), dtype)


def link(source: Path, target: Path) -> bool:
    """Create a hard link to a file; returns whether this succeeded."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write tensors as safetensors, with the floating-point ones in this type."""
    safetensors.torch.save_file({name: cast(tensor, dtype) for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, converted to float32.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        check_is_weights(path, "model")
        return {name: cast(tensor, torch.float32) for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model: {path} cannot be read ({reason}); it may be truncated; copy it again") from error


def read_shards(folder: Path, kind: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the whole tensors of a distributed checkpoint, in this process alone.

    Args:
        folder: the checkpoint's folder, with one file for each process that wrote it.
        kind: "network", or "ema" for the averages.
        like: a tensor of the right shape and type for each name.

    Raises:
        UserError: a file is missing or damaged, or there is no such tensor.
    """
    state = {kind: {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}}
    load_shards(state, folder)
    return state[kind]


def load_shards(state: dict[str, Any], folder: Path, *, together: bool = False) -> None:
    """Read a distributed checkpoint into the tensors of a state, in place, however many processes wrote it.

    Args:
        state: nested dict of tensors, whole or sharded.
        folder: the checkpoint's folder.
        together: whether all processes call this, for their own parts.

    Raises:
        UserError: a file is missing or damaged, or a tensor is not in the checkpoint.
    """
    from torch.distributed.checkpoint import load

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(state, checkpoint_id=folder, no_dist=not together)
    except Exception as error:  # whatever a damaged file leads to; the cause is kept
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint: {folder} cannot be read ({reason}); use another checkpoint") from error


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
        return dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
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
