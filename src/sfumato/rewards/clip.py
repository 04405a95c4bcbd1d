"""CLIP score (Radford et al. 2021; Hessel et al. 2021): how well an image fits a text."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.backbone import load_clip


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Cosine of the image and text embeddings, -1 to 1; 0.1 to 0.4 in practice."""

    prompt: str | None = None
    """text for all images; each image's own caption if not given"""
    model: str = "openai/clip-vit-large-patch14"
    """CLIP model in transformers' format: hub id or folder"""

    def __post_init__(self):
        load_clip(self.model)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        captions = words.captions if self.prompt is None else (self.prompt,) * len(images)
        return load_clip(self.model).cosines(images, captions)
