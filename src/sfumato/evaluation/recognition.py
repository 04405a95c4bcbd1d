"""Classifiers that check whether an image shows its class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.emoji.judges import load_classifier, load_own
from sfumato.errors import UserError
from sfumato.evaluation.class_accuracy import at_emoji_size
from sfumato.evaluation.named_files import naming_files
from sfumato.rewards import classifier as imagenet

Recognizer = Literal["emoji", "resnet50", "efficientnet-lite0"]
CLASSIFIER = naming_files(lambda name: [] if name in get_args(Recognizer) else [name])
"""Metadata of an option that is one of these classifiers, or the folder of an own one."""


@dataclass(frozen=True)
class Recognition:
    """A classifier, ready to use."""

    class_names: tuple[str, ...]
    logits: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B K"]]
    """computes logits of images in [0, 1], on any device"""


def load_recognizer(name: str, device: torch.device) -> Recognition:
    """Load the bundled classifier of emoji, torchvision's ResNet50 IMAGENET1K_V2, EfficientNet-Lite0, or the classifier
    in a folder, which sees images at the size on which `sfumato pretrain` trained it by default, 64 pixels.

    Raises:
        UserError: there is no such classifier, or a package or weights are missing.
    """
    if name in ("resnet50", "efficientnet-lite0"):
        loaded = imagenet.load_network(name, None)
        return Recognition(tuple(imagenet_class_names()), lambda images: loaded.log_probs(images.to(device)))
    if name != "emoji" and not Path(name).is_dir():
        raise UserError(
            f"classifier: {name!r} is not a folder; give {', '.join(get_args(Recognizer))}, or a folder that "
            "`sfumato pretrain emoji-classifier --data ...` wrote"
        )
    try:
        classifier = (load_classifier() if name == "emoji" else load_own(Path(name))).to(device)
    except UserError as error:
        raise UserError(f"classifier: {error}") from error
    return Recognition(classifier.class_names, lambda images: classifier.log_probs(at_emoji_size(images.to(device))))
