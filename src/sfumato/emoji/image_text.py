"""A small model similar to CLIP (Radford et al., 2021), for the reward `emoji-clip`, which runs without a GPU."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.emoji.judges import convolutions
from sfumato.families.folder import read_tensors, shape_from, write_tensors
from sfumato.request import CaptionFeatures
from sfumato.text.encoders import load_text_encoder


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Shape of an image-text model."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    """channels of each image stage; each stage halves the side"""
    text_encoder: str = "word-vectors"
    """text encoder for the captions"""
    text_hidden: int = 256
    """hidden width of the text part"""
    width: int = 128
    """width of the joint embedding"""


class ImageTextModel(nn.Module):
    """Embeds images and captions as unit vectors, which are close if the caption fits the image."""

    def __init__(self, config: ImageTextConfig):
        super().__init__()
        self.config = config
        self.reader = load_text_encoder(config.text_encoder)
        hidden = config.text_hidden
        self.image_features = convolutions(config.widths)
        self.image_head = nn.Linear(config.widths[-1], config.width)
        self.text_pieces = nn.Sequential(nn.Linear(self.reader.width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.text_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.width))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def embed_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Embed images in [0, 1] as unit vectors."""
        return F.normalize(self.image_head(self.image_features(images * 2 - 1).amax((2, 3))), dim=-1)

    def embed_text(self, text: CaptionFeatures) -> Float[Tensor, "P D"]:
        """Embed caption features as unit vectors, using the mean over their tokens, so word order is ignored."""
        weights = text.mask / text.mask.sum(1, keepdim=True)
        return F.normalize(self.text_head((self.text_pieces(text.features) * weights[..., None]).sum(1)), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "P D"]:
        """Embed captions, given as strings, as unit vectors."""
        text = CaptionFeatures.padded(self.reader.encode(captions)).to(self.log_scale.device)
        return self.embed_text(text)


def save_image_text(folder: Path, model: ImageTextModel) -> None:
    """Write `config.json` and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"family": "image-text", "shape": asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_tensors(folder / "image_text.safetensors", model.state_dict(), torch.float16)


def load_image_text(folder: Path | None = None) -> ImageTextModel:
    """Read a model that `save_image_text` wrote, by default the bundled `emoji-clip`; it is frozen and in eval mode."""
    folder = folder or Path(str(resources.files("sfumato") / "bundled/emoji-clip"))
    shape = json.loads((folder / "config.json").read_text("utf-8"))["shape"]
    model = ImageTextModel(shape_from(ImageTextConfig, shape))
    model.load_state_dict(read_tensors(folder / "image_text.safetensors"))
    return model.eval().requires_grad_(False)
