"""Write a model in its published format, or its adapters in peft's."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from sfumato.errors import UserError
from sfumato.families.adapters import Adapter, write_peft
from sfumato.families.folder import read_tensors, shape_from
from sfumato.families.library import AVERAGE, find_family, load_model, locate, read_generator, releases
from sfumato.files import check_writable, write_atomically


def export(name_or_path: str, folder: Path, file_format: str = "pth", weights: str | None = None) -> list[Path]:
    """Write network and tokenizer with the published names, or adapters in peft's format; returns the files.

    Args:
        name_or_path: a bundled model, run folder or checkpoint.
        folder: where to write; existing files are not overwritten.
        file_format: "pth" (for the original code) or "safetensors", with adapters merged; or "peft" for adapters alone.
        weights: "ema" for the moving average of the weights.

    Raises:
        UserError: the format is unknown, a file exists, or the model has no published format, average or adapters.
    """
    if file_format not in ("pth", "safetensors", "peft"):
        raise UserError(f"format: {file_format!r} is unknown; give pth, safetensors or peft")
    if weights not in (None, AVERAGE):
        raise UserError(f"weights: {weights!r} is not part of a run; give {AVERAGE}, or omit it")
    if name_or_path in releases():
        raise UserError(
            f"model: {name_or_path} is already in its published format; give a run folder or a model of your own"
        )
    check_writable("out", folder)
    model, averaged = locate(name_or_path), weights == AVERAGE
    if file_format == "peft":
        return _export_adapters(model, folder, averaged)
    generator = load_model(model, averaged=averaged)
    family = find_family(generator.card.family)
    if family.write is None:
        raise UserError(f"model: the family {family.name} has no published format; use the model folder itself")
    state_dicts = family.write(generator)
    files = {name: folder / f"{name}.{file_format}" for name in state_dicts}
    _check_absent(files.values())
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        tensors = {key: tensor.contiguous() for key, tensor in state_dicts[name].items()}
        if file_format == "pth":
            content = {family.wrapping[name]: tensors} if name in family.wrapping else tensors
            write_atomically(file, partial(torch.save, content))
        else:
            write_atomically(file, partial(safetensors.torch.save_file, tensors))
    return list(files.values())


def _export_adapters(model: Path, folder: Path, averaged: bool) -> list[Path]:
    config = read_generator(model)
    if "adapter" not in config:
        raise UserError(f"format: {model} has no adapters to export as peft; give pth or safetensors")
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    _check_absent(files)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = read_tensors(model / ("adapter_ema.safetensors" if averaged else "adapter.safetensors"))
    write_peft(folder, tensors, shape_from(Adapter, config["adapter"]))
    return files


def _check_absent(files: Iterable[Path]) -> None:
    for file in files:
        if file.exists():
            raise UserError(f"out: {file} exists; choose another folder or remove it")
