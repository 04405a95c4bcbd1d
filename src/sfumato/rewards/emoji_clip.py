"""The bundled image-text model as a reward: it runs anywhere, and knows emoji alone."""

from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.emoji.image_text import ImageTextModel, load_image_text
from sfumato.rollout import Conditions


class EmojiClip:
    """Cosine of an image and its caption (of a class-conditional image: its class's name), in -1 to 1."""

    def __init__(self, prompt: str = "", weights: str = ""):
        """The reward.

        Args:
            prompt: what every image is compared with, such as "on a blue background"; its own caption if not given.
            weights: the `model/` folder of a run of `sfumato pretrain emoji-clip`; the bundled one if not given.
        """
        self.prompt, self.folder = prompt, Path(weights) if weights else None

    @cached_property
    def model(self) -> ImageTextModel:
        """The model, read at the first use."""
        return load_image_text(self.folder)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        model = self.model.to(images.device)
        names = [self.prompt] * len(images) if self.prompt else conditions.names
        distinct = list(dict.fromkeys(names))
        texts = model.embed_captions(distinct)[[distinct.index(name) for name in names]]
        return (model.embed_images(images.float()) * texts).sum(1)
