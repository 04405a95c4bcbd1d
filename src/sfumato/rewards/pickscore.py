"""PickScore (Kirstain et al. 2023): a CLIP model trained on human choices between two images."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.backbone import load_clip


@dataclass(frozen=True, kw_only=True)
class PickScore:
    """The model's scaled cosine of image and caption, as its authors report it; about 15 to 25."""

    model: str = "yuvalkirstain/PickScore_v1"
    """hub id or folder of the model"""
    tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """hub id or folder of the tokenizer"""

    def __post_init__(self):
        load_clip(self.model, self.tokenizer, "down")

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        clip = load_clip(self.model, self.tokenizer, "down")
        return clip.model.logit_scale.exp().to(images.device) * clip.cosines(images, words.captions)
