"""Read the weight files that people have: bare state dicts, checkpoints of trainers, shards, folders.

A checkpoint may hold several state dicts: raw weights and averages, a transformer and a tokenizer. The one with the
right tensors is taken; `FILE::NAME` chooses another one by name.
"""

import json
import pathlib
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.published import is_autoencoder
from sfumato.notes import note

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""Extensions that are looked for in a folder. A given file may have any name: its first bytes tell its format."""
_WRAPPERS = ("module.", "ema_model.", "online_model.")
"""Prefixes of the names of tensors, from DistributedDataParallel, AveragedModel and ema-pytorch."""
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|shadow)($|[._])", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(r"(^|_)opt(im\w*)?($|_)|sched|scaler|rng", re.IGNORECASE)
_HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
    *((np._core.multiarray.scalar, f"{place}.multiarray.scalar") for place in ("numpy.core", "numpy._core")),  # pyright: ignore
    *(
        (pure, f"{module}.{kind}")  # pure paths, because those of the other operating system cannot be created
        for module in ("pathlib", "pathlib._local")
        for kind, pure in (
            ("Path", pathlib.PurePath),
            ("PosixPath", pathlib.PurePosixPath),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    ),
]
"""What trainers store next to their weights, and what cannot run code when it is unpickled."""


def read_state_dict(path: str | Path, field: str = "weights") -> dict[str, Tensor]:
    """Read a state dict from a file, from the shards of an index, or from the only weight file in a folder.

    The file may be a checkpoint with several state dicts, at any depth. For the field "tokenizer" an autoencoder is
    taken, for others a network that is none, and raw weights rather than their average; a note says which. `PATH::NAME`
    takes the state dict with this name; `PATH::ema` takes the average. The prefixes of wrappers (`module.`,
    `_orig_mod.`, `ema_model.`) are removed from the names of the tensors.

    Pickles are read with `weights_only=True`: no code in the file is run.

    A folder with `encoder.jit` and `decoder.jit` has a tokenizer in TorchScript, whose tensors are read with
    `torch.jit.load`: such files contain code, so a note says to trust their source.

    Args:
        path: `.safetensors` or PyTorch file, `*.index.json`, or folder; `::NAME` may follow.
        field: what the tensors are, "weights" or "tokenizer"; messages begin with it.

    Raises:
        UserError: the file is missing, damaged or something else, does not contain a state dict, or contains several
            that could be meant.
    """
    name, chosen = str(path), ""
    if "::" in name and not Path(name).exists():
        name, _, chosen = name.rpartition("::")
    if (Path(name) / "encoder.jit").is_file():
        return _read_torchscript(Path(name), field)
    file = _find(Path(name), field)
    found = dict(_state_dicts(_read(file, field)))
    if not found:
        raise UserError(f"{field}: {file} does not contain a state dict; give a file of named tensors")
    kind = _choose(found, chosen, file, field)
    if len(found) > 1:
        note(f"{field}: {file} has {', '.join(map(_shown, found))}; took {_shown(kind)} (::NAME takes another)")
    return found[kind]


def _find(path: Path, field: str) -> Path:
    """Return the weight file or index at a path, or the only one in the folder there."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{field}: {path} is not a file; give the path of a .safetensors or .pth file")
    files = sorted(path.glob("*.index.json")) or sorted(f for f in path.iterdir() if f.suffix in SUFFIXES)
    if len(files) != 1:
        names = f"has {', '.join(f.name for f in files[:5])}" if files else "has no weight file"
        raise UserError(f"{field}: the folder {path} {names}; give the path of one file")
    return files[0]


def _read_torchscript(folder: Path, field: str) -> dict[str, Tensor]:
    """Return the tensors of `encoder.jit` and `decoder.jit`; nothing in them is called."""
    note(f"{field}: {folder} has TorchScript files, which contain code; use only those of a source that you trust")
    tensors: dict[str, Tensor] = {}
    for file in (folder / "encoder.jit", folder / "decoder.jit"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, in which the files are published
                tensors |= torch.jit.load(file, map_location="cpu").state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{field}: {file} cannot be read ({fault_of(error)}); download it again") from error
    return tensors


def _read(path: Path, field: str) -> object:
    """Return what a weight file, or the files that an index names, contain."""
    if not path.name.endswith(".index.json"):
        return _read_file(path, field)
    try:
        shards = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{field}: {path} is not an index of weight files; download it again") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise UserError(f"{field}: {path.parent / shard} is missing, which {path.name} names; download it too")
        content = _read_file(path.parent / shard, field)
        tensors |= content if isinstance(content, dict) else {}
    return tensors


def check_is_weights(path: Path, field: str) -> bytes:
    """Check that a file is not empty, nor what people often have in place of weights; return its first bytes.

    Raises:
        UserError: it is; the message begins with `field` and says how to get the weights.
    """
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise UserError(f"{field}: {path} is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{field}: {path} is a pointer of Git LFS, not the weights; run `git lfs pull` in its repository"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{field}: {path} is a web page, not weights; download the file itself (on the Hub, the address has "
            "/resolve/ and not /blob/)"
        )
    return start


def _read_file(path: Path, field: str) -> object:
    start = check_is_weights(path, field)
    try:
        if start[8:9] == b"{":  # after the length of the header
            return safetensors.torch.load_file(path)
        # Opened here, because torch.load judges a path by its extension.
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; the cause is kept
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise UserError(
                f"{field}: {path} contains {foreign[1]}, which could run code and is not read; where the file comes "
                "from, save the state dict alone with torch.save(model.state_dict(), FILE)"
            ) from error
        raise UserError(
            f"{field}: {path} cannot be read ({fault_of(error)}); it may be truncated; download it again"
        ) from error


def fault_of(error: Exception) -> str:
    """Return in one line why a file could not be unpickled with `weights_only=True`, without torch's advice to load it
    unsafely."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return f"it contains {foreign[1]}, which could run code"
    unpickling = re.search(r"WeightsUnpickler error: *(.*)", str(error))
    if unpickling:
        return unpickling[1] or "it is not a PyTorch file"
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]


def _state_dicts(content: object, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the state dicts in a file, at any depth, with their names: "ema", "trainer.var_wo_ddp"."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    parts = [(key, value) for key, value in content.items() if not _NOT_WEIGHTS.search(key)]
    inner = [found for key, value in parts for found in _state_dicts(value, _join(name, key))]
    yield from inner
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not inner and any(value.is_floating_point() for value in tensors.values()):
        yield from _unwrapped(tensors, name)


def _unwrapped(tensors: dict[str, Tensor], name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the state dict without the prefixes of wrappers; a wrapper may hold raw weights and their average."""
    tensors = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}
    parts = {wrapper: _below(wrapper, tensors) for wrapper in _WRAPPERS}
    # The wrappers' own tensors are counters: n_averaged, initted, step.
    if all(key.startswith(_WRAPPERS) or not tensor.ndim for key, tensor in tensors.items()):
        for wrapper, part in parts.items():
            if part:
                yield from _unwrapped(part, _join(name, wrapper[:-1]))
    else:
        yield name, tensors


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _choose(found: Mapping[str, Mapping[str, Tensor]], chosen: str, path: Path, field: str) -> str:
    """Return the name of the state dict to take: the chosen one, or the one of the right kind.

    Raises:
        UserError: none has the chosen name, or several are of the right kind.
    """
    names = [chosen] if chosen in found else [n for n in found if f".{chosen}." in f".{n}."] if chosen else list(found)
    if not names and chosen == "ema":
        names = [name for name in found if _AVERAGED.search(name)]
    if not names:
        raise UserError(f"{field}: {path} has no {chosen!r}; it has {', '.join(map(_shown, found))}")
    # Each preference applies only if it leaves something.
    names = [n for n in names if is_autoencoder(found[n]) == (field == "tokenizer")] or names
    names = [n for n in names if not _AVERAGED.search(n)] or names
    if len(names) > 1:
        raise UserError(
            f"{field}: {path} has several state dicts; give one of {', '.join(f'{path}::{n}' for n in names)}"
        )
    return names[0]


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _shown(name: str) -> str:
    """Return the name of a state dict for messages, and whether it is an average."""
    return f"{name!r} ({'averages' if _AVERAGED.search(name) else 'raw'})"
