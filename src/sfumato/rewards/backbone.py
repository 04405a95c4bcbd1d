"""CLIP through transformers. All rewards that use a model share one copy of it, and it processes each batch once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import crop_square, normalize
from sfumato.rewards import needs
from sfumato.rewards.sharing import OncePerBatch, inference

CAPTIONS_KEPT = 100_000
"""Largest number of captions whose embeddings are cached."""


class Clip:
    """A CLIP model with its tokenizer, and a cache of the embeddings of the last batch and of all captions so far."""

    def __init__(self, model: Any, tokenizer: Any, fit: Callable[[Tensor, int], Tensor] = crop_square):
        self.model, self.tokenizer, self.fit = model.eval().requires_grad_(False), tokenizer, fit
        self.side: int = model.config.vision_config.image_size
        self._last: OncePerBatch[Tensor] = OncePerBatch()
        self._captions: dict[str, Tensor] = {}

    def image_embeddings(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return unit vectors of images in [0, 1], which are made square at the model's size as its processor does."""
        return self._last(images, lambda: self._embed_images(images))

    def text_embeddings(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "B D"]:
        """Return unit vectors of captions. Captions are truncated to the model's maximum length and encoded once."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._captions]
        if missing:
            if len(self._captions) + len(missing) > CAPTIONS_KEPT:
                self._captions.clear()
                missing = list(dict.fromkeys(captions))
            self._captions |= zip(missing, self._embed_texts(missing, device), strict=True)
        return torch.stack([self._captions[caption] for caption in captions]).to(device)

    def cosines(self, images: Float[Tensor, "B 3 H W"], captions: Sequence[str]) -> Float[Tensor, " B"]:
        """Return the cosine of each image and its caption."""
        return (self.image_embeddings(images) * self.text_embeddings(captions, images.device)).sum(1)

    @torch.no_grad()
    def _embed_images(self, images: Tensor) -> Tensor:
        self.model.to(images.device)
        pixels = normalize(self.fit(images, self.side))
        with inference(images.device):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output.float()
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def _embed_texts(self, captions: Sequence[str], device: torch.device) -> Tensor:
        self.model.to(device)
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        with inference(device):
            pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output.float()
        return F.normalize(self.model.text_projection(pooled), dim=-1)


@functools.cache
def load_clip(model: str, tokenizer: str | None = None, rounding: Literal["even", "down"] = "even") -> Clip:
    """Load a CLIP model by hub id or folder; later calls return the same object.

    Args:
        model: hub id or folder of the model.
        tokenizer: hub id or folder of the tokenizer, if it is not the model's.
        rounding: how its authors crop: "even" as OpenAI's code, "down" as transformers' processor.

    Raises:
        UserError: transformers is missing, or the model cannot be loaded.
    """
    transformers = needs.package("transformers", "clip")
    return Clip(
        needs.pretrained(transformers.CLIPModel, model),
        needs.pretrained(transformers.AutoTokenizer, tokenizer or model),
        functools.partial(crop_square, rounding=rounding),
    )
