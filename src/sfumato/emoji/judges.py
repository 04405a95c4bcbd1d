"""Two small classifiers of the bundled classes: one for evaluation only, and its rival, for rewards only.

A policy that is rewarded by the network that judges it would learn that network's mistakes; so the two differ in shape,
in what they were trained on, and in their seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import UserError


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


@dataclass(frozen=True, kw_only=True)
class PatchClassifierConfig:
    """Shape of the rival."""

    num_classes: int
    """number of classes"""
    patch: int = 4
    """side of the first patches in pixels"""
    widths: tuple[int, ...] = (64, 128, 192)
    """channels of each stage; every stage after the first merges 2 × 2 patches"""
    depths: tuple[int, ...] = (1, 2, 2)
    """blocks of each stage"""
    kernel: int = 5
    """patches a side that a block looks at"""


class PatchBlock(nn.Module):
    """A depthwise convolution over patches, then a perceptron in each (ConvNeXt, Liu et al. 2022, with batch norm)."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand, self.reduce = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """The same shape."""
        return x + self.reduce(F.relu(self.expand(self.norm(self.depthwise(x)))))


class PatchClassifier(nn.Module):
    """Patches, mixed by depthwise convolutions and perceptrons, then a linear layer on each channel's maximum."""

    def __init__(self, config: PatchClassifierConfig, class_names: tuple[str, ...]):
        super().__init__()
        self.config, self.class_names = config, class_names
        stages: list[nn.Module] = []
        channels, side = 3, config.patch
        for width, depth in zip(config.widths, config.depths, strict=True):
            stages += [nn.Conv2d(channels, width, side, stride=side, bias=False), nn.BatchNorm2d(width)]
            stages += [PatchBlock(width, config.kernel) for _ in range(depth)]
            channels, side = width, 2
        self.features = nn.Sequential(*stages, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, config.num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Logits of the classes for images in [0, 1]."""
        # Depthwise convolutions on the CPU are twice as fast with the channels last.
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.head(self.features(x).amax((2, 3)))

    @torch.no_grad()
    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Log-probabilities of the classes."""
        return F.log_softmax(self(images), dim=-1)


Kind = TypeVar("Kind", Classifier, PatchClassifier)
FAMILIES = {"classifier": (Classifier, ClassifierConfig), "patch-classifier": (PatchClassifier, PatchClassifierConfig)}
"""what `config.json` calls the two"""


def save_classifier(folder: Path, classifier: Classifier | PatchClassifier) -> None:
    """Write `config.json` and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    family = next(name for name, (kind, _) in FAMILIES.items() if isinstance(classifier, kind))
    config = {"family": family, "shape": asdict(classifier.config), "class_names": classifier.class_names}
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in classifier.state_dict().items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "classifier.safetensors")


def load_classifier(folder: Path | None = None) -> Classifier:
    """The evaluation's classifier in a folder; by default the bundled one of emoji.

    Raises:
        UserError: the folder holds none.
    """
    return _load(folder or _bundled("emoji-classifier"), Classifier)


def load_rival(folder: Path | None = None) -> PatchClassifier:
    """The rewards' classifier in a folder; by default the bundled one of emoji.

    Raises:
        UserError: the folder holds none.
    """
    return _load(folder or _bundled("emoji-rival"), PatchClassifier)


def _bundled(name: str) -> Path:
    return Path(str(resources.files("sfumato") / "bundled" / name))


def _load(folder: Path, wanted: type[Kind]) -> Kind:
    """A classifier of this kind, for inference."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    kind, shape = FAMILIES.get(config.get("family", ""), (None, None))
    if kind is not wanted or shape is None:
        family = next(name for name, (known, _) in FAMILIES.items() if known is wanted)
        raise UserError(f"weights: {folder} holds no {family}; give the model/ of a `sfumato pretrain` run of one")
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in config["shape"].items()}
    classifier = wanted(shape(**sizes), tuple(config["class_names"]))
    tensors = safetensors.torch.load_file(folder / "classifier.safetensors")
    classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return classifier.eval().requires_grad_(False)
