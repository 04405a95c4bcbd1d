"""A small convolutional classifier of the bundled classes, for evaluation only."""

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


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the classifier."""

    num_classes: int
    """number of classes"""
    widths: tuple[int, ...] = (32, 64, 128, 192)
    """channels of each stage; every stage halves the side"""


def convolutions(widths: Sequence[int]) -> nn.Sequential:
    """Stages of two convolutions with batch norm; each stage halves the side."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        for stride in (2, 1):
            conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Stages of convolutions, then a linear layer on each channel's maximum."""

    def __init__(self, config: ClassifierConfig, class_names: tuple[str, ...]):
        super().__init__()
        self.config, self.class_names = config, class_names
        self.features = convolutions(config.widths)
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Logits of the classes for images in [0, 1]."""
        return self.head(self.features(images * 2 - 1).amax((2, 3)))

    @torch.no_grad()
    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Log-probabilities of the classes."""
        return F.log_softmax(self(images), dim=-1)


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Write `config.json` and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"family": "classifier", "shape": asdict(classifier.config), "class_names": classifier.class_names}
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in classifier.state_dict().items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "classifier.safetensors")


def load_classifier(folder: Path | None = None) -> Classifier:
    """The classifier in a folder; by default the bundled one of emoji."""
    folder = folder or Path(str(resources.files("sfumato") / "bundled/emoji-classifier"))
    config = json.loads((folder / "config.json").read_text())
    shape = ClassifierConfig(num_classes=config["shape"]["num_classes"], widths=tuple(config["shape"]["widths"]))
    classifier = Classifier(shape, tuple(config["class_names"]))
    tensors = safetensors.torch.load_file(folder / "classifier.safetensors")
    classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return classifier.eval().requires_grad_(False)
