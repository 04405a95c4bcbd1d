"""Classifiers that check whether an image shows its class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.emoji.judges import load_classifier
from sfumato.evaluation.class_accuracy import at_emoji_size
from sfumato.rewards import classifier as imagenet

Recognizer = Literal["emoji", "resnet50", "efficientnet-lite0"]


@dataclass(frozen=True)
class Recognition:
    """A classifier, ready to use."""

    class_names: tuple[str, ...]
    logits: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B K"]]
    """computes logits of images in [0, 1], on any device"""


def load_recognizer(name: Recognizer, device: torch.device) -> Recognition:
    """Load the bundled classifier of emoji, torchvision's ResNet50 IMAGENET1K_V2, or EfficientNet-Lite0.

    Raises:
        UserError: a package or weights are missing.
    """
    if name == "emoji":
        classifier = load_classifier().to(device)
        return Recognition(
            classifier.class_names, lambda images: classifier.log_probs(at_emoji_size(images.to(device)))
        )
    loaded = imagenet.load_network(name, None)
    return Recognition(tuple(imagenet_class_names()), lambda images: loaded.log_probs(images.to(device)))
