"""No-reference image quality by any metric of pyiqa; MANIQA (Yang et al. 2022) by default."""

import functools
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs

IMAGES_AT_ONCE = 4
"""Number of images per forward pass. MANIQA takes twenty crops of each, whose attention maps need 0.75 GB per image."""


@dataclass(frozen=True, kw_only=True)
class Iqa:
    """The metric's score, negated if lower is better.

    MANIQA, 0 to 1, is the mean over twenty evenly spaced crops of 224 pixels; pyiqa enlarges smaller images.
    """

    metric: str = "maniqa"
    """name of a no-reference metric in pyiqa"""
    weights: str | None = None
    """file with the metric's weights, or owner/repository/file on the hub; pyiqa downloads them if not given"""

    def __post_init__(self):
        load_metric(self.metric, self.weights)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        metric = load_metric(self.metric, self.weights)
        # Some metrics take random crops: always the same. Without `devices` every visible GPU is initialized.
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            metric = metric.to(images.device)
            scores = torch.cat([metric(part.clamp(0, 1)).flatten() for part in images.split(IMAGES_AT_ONCE)])
        return -scores if metric.lower_better else scores


@functools.cache
def load_metric(name: str, weights: str | None) -> Any:
    """Load a metric of pyiqa; later calls return the same object.

    Raises:
        UserError: pyiqa is missing or does not know the metric, or the metric needs a reference image, or its weights
            are not available.
    """
    pyiqa = needs.package("pyiqa", "iqa")
    known = pyiqa.list_models("NR")
    if name not in known:
        raise UserError(f"metric: {name!r} is not a no-reference metric of pyiqa; give one of {', '.join(known)}")
    try:
        with safe_unpickling(), tempfile.TemporaryDirectory() as folder:
            options = {} if weights is None else {"pretrained_model_path": wrapped(weights, Path(folder))}
            metric = pyiqa.create_metric(name, device="cpu", **options)
    except OSError as error:
        raise UserError(
            f"weights: those of {name} cannot be downloaded ({needs.first_line(error)}); give the path of a file"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights: those of {name} contain more than tensors, or are damaged; give a file of tensors"
        ) from error
    except (KeyError, RuntimeError) as error:
        if weights is None:
            raise
        raise UserError(f"weights: {weights} do not fit {name} ({' '.join(str(error).split())[:200]})") from error
    return metric.eval().requires_grad_(False)


@contextmanager
def safe_unpickling() -> Iterator[None]:
    """Let `torch.load` run no code in files, whatever its caller asks for; pyiqa asks for `weights_only=False`."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def wrapped(weights: str, folder: Path) -> str:
    """Write a file of weights as pyiqa reads it, under `params`, and return its path. Authors publish bare tensors."""
    held = needs.weights(weights)
    torch.save(held if "params" in held else {"params": held}, folder / "weights.pth")
    return str(folder / "weights.pth")
