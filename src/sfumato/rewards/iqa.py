"""No-reference image quality by any metric of pyiqa; MANIQA (Yang et al. 2022) by default."""

import functools
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import resize_shortest
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs

CROPS, SIDE = 20, 224
"""Number of MANIQA's crops of an image, and their side in pixels."""
IMAGES_AT_ONCE = 4
"""Number of images per forward pass. MANIQA takes twenty crops of each, whose attention maps need 0.75 GB per image."""


@dataclass(frozen=True, kw_only=True)
class Iqa:
    """The metric's score, negated if lower is better.

    MANIQA, 0 to 1, is the mean of the scores of twenty random crops of 224 pixels, as its authors compute it
    (`predict_one_image.py` in IIGROUP/MANIQA) and AR-GRPO uses it. Within a crop, the patches are averaged by their
    weights. pyiqa by itself takes evenly spaced crops and averages the patches of all crops at once, so that crops
    with large weights count more. The crops are the same for all images of a size; smaller images are enlarged.
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
            score = functools.partial(mean_of_crops, metric) if is_maniqa(self.metric) else metric
            scores = torch.cat([score(part.clamp(0, 1)).flatten() for part in images.split(IMAGES_AT_ONCE)])
        return -scores if metric.lower_better else scores


def is_maniqa(name: str) -> bool:
    """Return whether a metric of pyiqa is MANIQA, with any weights: maniqa, maniqa-kadid or maniqa-pipal."""
    return name.partition("-")[0] == "maniqa"


def mean_of_crops(metric: Callable[[Tensor], Tensor], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean of a metric's scores of twenty crops of each image, which are the same at each call."""
    if min(images.shape[-2:]) < SIDE:
        images = resize_shortest(images, SIDE, "bilinear")
    rng = torch.Generator().manual_seed(0)
    # As in the authors' code, the last position is never drawn, except if it is the only one.
    tops, lefts = (torch.randint(max(1, side - SIDE), (CROPS,), generator=rng).tolist() for side in images.shape[-2:])
    crops = [images[:, :, y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts, strict=True)]
    # pyiqa resizes images of 224 pixels to 225, and takes the first 224 of 225 as they are.
    padded = F.pad(torch.stack(crops, dim=1).flatten(0, 1), (0, 1, 0, 1), mode="replicate")
    return metric(padded).view(len(images), CROPS).mean(1)


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
    if is_maniqa(name):
        metric.net.test_sample = 1  # each of our crops is an image of its own; see `mean_of_crops`
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
