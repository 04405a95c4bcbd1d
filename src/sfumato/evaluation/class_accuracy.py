"""Check whether images show the requested class."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.data.preprocessing import crop_square
from sfumato.emoji.judges import Classifier
from sfumato.naming import find_labels
from sfumato.request import Words
from sfumato.rewards.classifier import EMOJI_SIDE


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of images whose class is a classifier's first guess, or among its first five."""

    top1: float
    top5: float


def at_emoji_size(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 64 64"]:
    """Resize and crop images of another size to the size that the bundled classifier of emoji was trained on."""
    return images if images.shape[-2:] == (EMOJI_SIDE, EMOJI_SIDE) else crop_square(images, EMOJI_SIDE)


def class_accuracy(classifier: Classifier, images: Float[Tensor, "B 3 H W"], words: Words) -> Accuracy | None:
    """Return the accuracy of a classifier on the requested classes; None if it does not know them."""
    hits = class_hits(classifier, images, words)
    if hits is None:
        return None
    return Accuracy(top1=hits[:, 0].float().mean().item(), top5=hits[:, 1].float().mean().item())


def class_hits(classifier: Classifier, images: Float[Tensor, "B 3 H W"], words: Words) -> Bool[Tensor, "B 2"] | None:
    """Return whether each image's class is a classifier's first guess, and among its first five; None if it does not
    know the classes."""
    labels = find_labels(classifier.class_names, words)
    if labels is None:
        return None
    with torch.no_grad():
        return top_hits(classifier(at_emoji_size(images.cpu())), labels)


def top_hits(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Bool[Tensor, "B 2"]:
    """Return whether each label has the largest logit, and whether it has one of the five largest."""
    top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None].to(logits.device)
    return torch.stack([top[:, 0], top.any(1)], dim=1).cpu()
