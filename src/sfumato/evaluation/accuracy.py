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


def class_accuracy(classifier: Classifier, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Accuracy:
    """Agreement of a classifier with the classes asked for, by label."""
    with torch.no_grad():
        logits = classifier(images.cpu())
        top = logits.topk(min(5, logits.shape[1])).indices == conditions.labels.cpu()[:, None]
    return Accuracy(top1=top[:, 0].float().mean().item(), top5=top.any(1).float().mean().item())
