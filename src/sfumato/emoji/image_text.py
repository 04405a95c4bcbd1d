"""A small image-text model in the manner of CLIP (Radford et al., 2021): `emoji-clip`, a reward that runs anywhere."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.emoji.judges import convolutions
from sfumato.rollout import CaptionFeatures
from sfumato.text.encoders import load_text_encoder


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Shape of an image-text model."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    """channels of each image stage; every stage halves the side"""
    text_encoder: str = "word-vectors"
    """what reads the captions"""
    text_hidden: int = 256
    """hidden width of the text half"""
    width: int = 128
    """width of the common embedding"""


class ImageTextModel(nn.Module):
    """Images and captions as unit vectors, near each other where the caption fits the image."""

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
        """Unit vectors of images in [0, 1]."""
        return F.normalize(self.image_head(self.image_features(images * 2 - 1).amax((2, 3))), dim=-1)

    def embed_text(self, text: CaptionFeatures) -> Float[Tensor, "P D"]:
        """Unit vectors of captions: the mean over their tokens, whatever their order."""
        weights = text.mask / text.mask.sum(1, keepdim=True)
        return F.normalize(self.text_head((self.text_pieces(text.features) * weights[..., None]).sum(1)), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "P D"]:
        """Unit vectors of captions as strings."""
        text = CaptionFeatures.padded(self.reader.encode(captions)).to(self.log_scale.device)
        return self.embed_text(text)


def save_image_text(folder: Path, model: ImageTextModel) -> None:
    """Write `config.json` and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"family": "image-text", "shape": asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "image_text.safetensors")


def load_image_text(folder: Path | None = None) -> ImageTextModel:
    """Read a model that `save_image_text` wrote, frozen and in eval mode; the bundled `emoji-clip` by default."""
    folder = folder or Path(str(resources.files("sfumato") / "bundled/emoji-clip"))
    shape = json.loads((folder / "config.json").read_text())["shape"]
    model = ImageTextModel(ImageTextConfig(**{**shape, "widths": tuple(shape["widths"])}))
    tensors = safetensors.torch.load_file(folder / "image_text.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return model.eval().requires_grad_(False)
