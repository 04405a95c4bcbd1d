"""LAION's aesthetic predictor V2 (Schuhmann 2022): predicts human ratings, 1 to 10, from the CLIP embedding alone."""

import functools
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs
from sfumato.rewards.backbone import load_clip

WIDTHS = (1024, 128, 64, 16, 1)
"""Output widths of the five linear layers."""
DROPOUTS = (0.2, 0.2, 0.1)
"""Dropout rates after the first three layers. They have no effect here, but the names of the published weights count
them as layers."""


@dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """Predicted rating, about 4 to 7 for generated images."""

    model: str = "openai/clip-vit-large-patch14"
    """CLIP ViT-L/14: hub id or folder"""
    head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    """file with the linear layers, or owner/repository/file on the hub"""

    def __post_init__(self):
        width = load_clip(self.model).model.config.projection_dim
        head_width = load_head(self.head).state_dict()["0.weight"].shape[1]
        if head_width != width:
            raise UserError(
                f"head: {self.head} expects embeddings of width {head_width}, not {width} as in {self.model}; "
                "give the head of this model"
            )

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        embeddings = load_clip(self.model).image_embeddings(images)
        return load_head(self.head).to(images.device)(embeddings).squeeze(1)


@functools.cache
def load_head(path: str) -> nn.Sequential:
    """Load the linear layers from a published file, where they are named layers.0, layers.2, layers.4, layers.6 and
    layers.7.

    Raises:
        UserError: the file does not exist or contains something else.
    """
    tensors = {name.removeprefix("layers."): tensor.float() for name, tensor in needs.weights(path).items()}
    if "0.weight" not in tensors:
        raise UserError(f"head: {path} has no layers.0.weight; give the file of an aesthetic predictor V2")
    try:
        return build_head(tensors)
    except RuntimeError as error:
        raise UserError(f"head: {path} is not an aesthetic predictor V2 ({' '.join(str(error).split())})") from error


def build_head(tensors: dict[str, Tensor], dropouts: tuple[float, ...] = DROPOUTS) -> nn.Sequential:
    """Build five linear layers with these weights, named 0, 2, 4, 6 and 7, or 8 with four rates of dropout. ImageReward
    has the same head.

    Raises:
        RuntimeError: the weights do not fit these layers.
    """
    layers: list[nn.Module] = []
    before = tensors["0.weight"].shape[1]
    for number, width in enumerate(WIDTHS):
        layers.append(nn.Linear(before, width))
        before = width
        if number < len(dropouts):
            layers.append(nn.Dropout(dropouts[number]))
    head = nn.Sequential(*layers)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
