"""Image quality without a reference, by any metric of pyiqa; MANIQA (Yang et al. 2022) by default."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.rewards import needs
from sfumato.rollout import Conditions

IMAGES_AT_ONCE = 4
"""images in a pass: MANIQA makes twenty crops of each, whose attention maps take 0.75 GB an image"""


@dataclass(frozen=True, kw_only=True)
class Iqa:
    """The metric's score; a metric of which less is better is negated.

    MANIQA, 0 to 1, is the mean over twenty crops of 224 pixels at even distances; pyiqa enlarges smaller images.
    """

    metric: str = "maniqa"
    """name of a no-reference metric of pyiqa"""
    weights: str | None = None
    """file of the metric's weights, or owner/repository/file of the hub; pyiqa fetches them if not given"""

    def __post_init__(self):
        load_metric(self.metric, self.weights)

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        metric = load_metric(self.metric, self.weights)
        with torch.random.fork_rng(), torch.no_grad():  # the crops of some metrics are drawn; always the same ones
            torch.manual_seed(0)
            metric = metric.to(images.device)
            scores = torch.cat([metric(part.clamp(0, 1)).flatten() for part in images.split(IMAGES_AT_ONCE)])
        return -scores if metric.lower_better else scores


@functools.cache
def load_metric(name: str, weights: str | None) -> Any:
    """A metric of pyiqa; the same object at every call.

    Raises:
        UserError: pyiqa is missing or does not know the metric, or it needs a reference, or its weights.
    """
    pyiqa = needs.package("pyiqa", "iqa")
    known = pyiqa.list_models("NR")
    if name not in known:
        raise UserError(f"metric: pyiqa has no {name!r} without a reference; give one of {', '.join(known)}")
    options = {} if weights is None else {"pretrained_model_path": str(needs.file(weights))}
    try:
        metric = pyiqa.create_metric(name, device="cpu", **options)
    except OSError as error:
        raise UserError(
            f"weights: {name}'s cannot be fetched ({needs.first_line(error)}); give the path of their file"
        ) from error
    return metric.eval().requires_grad_(False)
