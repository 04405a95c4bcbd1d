"""Two small classifiers of the bundled classes: one for evaluation only, and its rival, for rewards only.

If the same network computed the reward and the evaluation, a policy could exploit its mistakes undetected. So the two
differ in architecture, training images and seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.folder import read_tensors, shape_from, write_tensors


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the evaluation classifier."""

    num_classes: int
    """number of classes"""
    widths: tuple[int, ...] = (32, 64, 128, 192)
    """channels of each stage; each stage halves the side"""


def convolutions(widths: Sequence[int]) -> nn.Sequential:
    """Build stages of two convolutions with batch norm; each stage halves the side."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        for stride in (2, 1):
            conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """The evaluation classifier: stages of convolutions, then a linear layer on each channel's maximum."""

    def __init__(self, config: ClassifierConfig, class_names: tuple[str, ...]):
        super().__init__()
        self.config, self.class_names = config, class_names
        self.features = convolutions(config.widths)
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return class logits for images in [0, 1]."""
        return self.head(self.features(images * 2 - 1).amax((2, 3)))

    @torch.no_grad()
    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return class log-probabilities for images in [0, 1]."""
        return F.log_softmax(self(images), dim=-1)


@dataclass(frozen=True, kw_only=True)
class PatchClassifierConfig:
    """Shape of the rival, the reward classifier."""

    num_classes: int
    """number of classes"""
    patch: int = 4
    """side of the initial patches in pixels"""
    widths: tuple[int, ...] = (64, 128, 192)
    """channels of each stage; each stage after the first merges 2 × 2 patches"""
    depths: tuple[int, ...] = (1, 2, 2)
    """number of blocks in each stage"""
    kernel: int = 5
    """side in patches of the kernel of each block"""


class PatchBlock(nn.Module):
    """Depthwise convolution over patches, then a perceptron per patch (ConvNeXt, Liu et al. 2022, with batch norm)."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand, self.reduce = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Return features of the same shape."""
        return x + self.reduce(F.relu(self.expand(self.norm(self.depthwise(x)))))


class PatchClassifier(nn.Module):
    """The rival: depthwise convolutions and perceptrons on patches, then a linear layer on each channel's maximum."""

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
        """Return class logits for images in [0, 1]."""
        # On the CPU, depthwise convolutions are twice as fast with channels last.
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.head(self.features(x).amax((2, 3)))

    @torch.no_grad()
    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return class log-probabilities for images in [0, 1]."""
        return F.log_softmax(self(images), dim=-1)


Kind = TypeVar("Kind", Classifier, PatchClassifier)
FAMILIES = {"classifier": (Classifier, ClassifierConfig), "patch-classifier": (PatchClassifier, PatchClassifierConfig)}
"""The two classifiers and their shapes, by the name in `config.json`."""


def save_classifier(folder: Path, classifier: Classifier | PatchClassifier) -> None:
    """Write `config.json` and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    family = next(name for name, (kind, _) in FAMILIES.items() if isinstance(classifier, kind))
    config = {"family": family, "shape": asdict(classifier.config), "class_names": classifier.class_names}
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_tensors(folder / "classifier.safetensors", classifier.state_dict(), torch.float16)


def load_classifier(folder: Path | None = None) -> Classifier:
    """Load the evaluation classifier in a folder, by default the bundled emoji classifier.

    Raises:
        UserError: the folder does not contain such a classifier.
    """
    return _load(folder or _bundled("emoji-classifier"), Classifier)


def load_rival(folder: Path | None = None) -> PatchClassifier:
    """Load the reward classifier in a folder, by default the bundled emoji rival.

    Raises:
        UserError: the folder does not contain such a classifier.
    """
    return _load(folder or _bundled("emoji-rival"), PatchClassifier)


def load_own(folder: Path) -> Classifier | PatchClassifier:
    """Load a classifier of either type: the run of `sfumato pretrain emoji-classifier` or `emoji-rival`, on any images,
    or its `model` folder.

    Raises:
        UserError: the folder does not contain a classifier.
    """
    inner = folder / "model" if (folder / "model/config.json").is_file() else folder
    family = _config(inner).get("family", "")
    if family not in FAMILIES:
        raise UserError(
            f"{folder} does not contain a classifier; give a folder of `sfumato pretrain emoji-classifier --data ...`"
        )
    return _load(inner, FAMILIES[family][0])


def _bundled(name: str) -> Path:
    return Path(str(resources.files("sfumato") / "bundled" / name))


def _load(folder: Path, wanted: type[Kind]) -> Kind:
    """Load a classifier of this type, for inference."""
    config = _config(folder)
    kind, shape = FAMILIES.get(config.get("family", ""), (None, None))
    if kind is not wanted or shape is None:
        family = next(name for name, (known, _) in FAMILIES.items() if known is wanted)
        raise UserError(
            f"weights: {folder} does not contain a {family}; give the model/ folder of a `sfumato pretrain` run for it"
        )
    classifier = wanted(shape_from(shape, config["shape"]), tuple(config["class_names"]))
    classifier.load_state_dict(read_tensors(folder / "classifier.safetensors"))
    return classifier.eval().requires_grad_(False)


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `config.json`; empty if there is none."""
    path = folder / "config.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
