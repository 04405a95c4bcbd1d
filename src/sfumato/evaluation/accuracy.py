"""Whether images still show the class that was asked for."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.models.classifier import Classifier
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of images whose class a classifier names first, or among its first five."""

    top1: float
    top5: float


def class_accuracy(classifier: Classifier, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Accuracy | None:
    """Agreement of a classifier with the classes asked for; None if it does not know them.

    An image's class is the "class" of its prompt's metadata, or else the condition's name.
    """
    numbers = {name: number for number, name in enumerate(classifier.class_names)}
    wanted = [data.get("class", name) for data, name in zip(conditions.metadata, conditions.names, strict=True)]
    if not all(name in numbers for name in wanted):
        return None
    labels = torch.tensor([numbers[str(name)] for name in wanted])
    with torch.no_grad():
        logits = classifier(images.cpu())
        top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return Accuracy(top1=top[:, 0].float().mean().item(), top5=top.any(1).float().mean().item())
