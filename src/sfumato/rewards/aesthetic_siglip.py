"""Aesthetic predictor V2.5 (discus0434 2024): predicts human ratings, 1 to 10, from SigLIP's embedding alone."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data.preprocessing import resize
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs
from sfumato.rewards.aesthetic import build_head
from sfumato.rewards.sharing import inference

URL = "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth"
"""The published linear layers. They are under the AGPL 3.0."""
DROPOUTS = (0.5, 0.5, 0.5, 0.2)
"""Dropout rates after the first four layers, which have no effect here."""


@dataclass(frozen=True, kw_only=True)
class AestheticSiglip:
    """Predicted rating; its author calls 5.5 and more a great score."""

    model: str = "google/siglip-so400m-patch14-384"
    """SigLIP, or its image encoder: hub id or folder"""
    head: str | None = None
    """file with the linear layers, or owner/repository/file on the hub; downloaded from GitHub if not given"""

    def __post_init__(self):
        load(self.model, self.head)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        vision, head = load(self.model, self.head)
        vision.to(images.device)
        side = vision.config.image_size
        with inference(images.device):
            pooled = vision(pixel_values=resize(images, side, side) * 2 - 1).pooler_output
        return head.to(images.device)(F.normalize(pooled.float(), dim=1)).squeeze(1)


@functools.cache
def load(model: str, head: str | None) -> tuple[Any, nn.Sequential]:
    """Load SigLIP's image encoder and the linear layers; later calls return the same objects.

    Raises:
        UserError: transformers is missing, or the weights are not available or do not fit.
    """
    transformers = needs.package("transformers", "clip")
    vision, found = needs.pretrained(transformers.SiglipVisionModel, model, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"model: {model} has no {missing[0]}; give SigLIP")
    tensors = published() if head is None else needs.weights(head)
    layers = {name.removeprefix("scoring_head."): tensor.float() for name, tensor in tensors.items()}
    width = vision.config.hidden_size
    try:
        found_width = layers["0.weight"].shape[1]
        built = build_head(layers, DROPOUTS)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"head: {head} is not that of the aesthetic predictor V2.5 ({reason}); give its .pth"
        ) from error
    if found_width != width:
        raise UserError(f"head: it expects embeddings of width {found_width}, not {width} as in {model}; give its head")
    return vision.eval().requires_grad_(False), built


def published() -> dict[str, Tensor]:
    """Download the published layers, or take them from torch's cache of downloads."""
    try:
        return torch.hub.load_state_dict_from_url(URL, map_location="cpu", weights_only=True, progress=False)
    except OSError as error:
        raise UserError(
            f"head: {URL} cannot be downloaded ({needs.first_line(error)}); give the file's path"
        ) from error
