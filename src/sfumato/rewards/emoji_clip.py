"""The bundled image-text model as a reward. It runs on any machine, but knows only emoji."""

from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.emoji.image_text import ImageTextModel, load_image_text
from sfumato.request import Words


class EmojiClip:
    """Cosine of an image and its caption (the class name for a class-conditional model), -1 to 1."""

    def __init__(self, prompt: str = "", weights: str = ""):
        """Create the reward.

        Args:
            prompt: text for all images, such as "on a blue background"; each image's own caption if not given.
            weights: the `model/` folder of a run of `sfumato pretrain emoji-clip`; the bundled model if not given.
        """
        self.prompt, self.folder = prompt, Path(weights) if weights else None

    @cached_property
    def model(self) -> ImageTextModel:
        """The model, loaded on first use."""
        return load_image_text(self.folder)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        model = self.model.to(images.device)
        names = [self.prompt] * len(images) if self.prompt else words.names
        distinct = list(dict.fromkeys(names))
        texts = model.embed_captions(distinct)[[distinct.index(name) for name in names]]
        return (model.embed_images(images.float()) * texts).sum(1)
