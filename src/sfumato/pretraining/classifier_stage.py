"""Training of classifiers on augmented images: `augmented_scenes` for evaluation, `rival_scenes` for rewards."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.data.pictures import grid
from sfumato.emoji.augmentations import augmented_scenes
from sfumato.emoji.judges import Classifier, PatchClassifier
from sfumato.engine.optimizer import descend
from sfumato.engine.schedule import cosine_schedule
from sfumato.pretraining.validation import held_out, validation_stats


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Settings for training a classifier."""

    steps: int = 2000
    """number of optimizer steps"""
    batch_size: int = 64
    """number of images per step"""
    learning_rate: float = 2e-3
    """peak learning rate of AdamW, on a cosine schedule"""
    warmup_steps: int = 100
    """number of steps of linear warm-up"""
    max_grad_norm: float = 10.0
    """largest gradient norm; larger gradients are scaled down to it"""
    label_smoothing: float = 0.05
    """probability mass spread over all classes"""


Draw = Callable[[ImageSource, int, torch.Generator], tuple[Tensor, Tensor]]
"""Function that draws a number of augmented images from a source, and returns them with their labels."""


class ClassifierTrainer:
    """A classifier and its optimizer. `step` trains on a batch; `state` is everything needed to resume."""

    def __init__(
        self,
        model: Classifier | PatchClassifier,
        source: ImageSource,
        config: ClassifierTraining,
        rng: torch.Generator,
        draw: Draw = augmented_scenes,
    ):
        self.model, self.source, self.config, self.rng, self.draw = model, source, config, rng, draw
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
        self.schedule = cosine_schedule(config.steps, config.warmup_steps)

    def step(self, step: int) -> dict[str, float]:
        images, labels = self.draw(self.source, self.config.batch_size, self.rng)
        logits = self.model.train()(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        descend(self.optimizer, loss, self.config.learning_rate * self.schedule(step), self.config.max_grad_norm)
        return {"loss": loss.item(), "accuracy": (logits.argmax(-1) == labels).float().mean().item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the cross entropy and the accuracy on held-out images as they are; empty if there are none."""
        model = self.model.eval()

        def measure(items: Int[Tensor, " B"]) -> dict[str, float]:
            images, labels = self.source[items]
            logits = model(images)
            accuracy = (logits.argmax(-1) == labels).float().mean()
            return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy.item()}

        return validation_stats(held_out(self.source.weights), self.config.batch_size, measure)

    @torch.no_grad()
    def validation_accuracy(self, count: int = 2048, seed: int = 10**6) -> tuple[float, float]:
        """Return top-1 and top-5 accuracy on augmented images from a random stream that training never uses."""
        rng, hits = torch.Generator().manual_seed(seed), torch.zeros(2)
        for _ in range(count // 64):
            images, labels = self.draw(self.source, 64, rng)
            logits = self.model.eval()(images)
            top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits += torch.stack([top[:, 0].sum(), top.sum()])
        top1, top5 = (hits / (count // 64 * 64)).tolist()
        return top1, top5

    def sample(self) -> Image.Image:
        """Draw a grid of augmented images, as the classifier sees them."""
        return grid(self.draw(self.source, 32, torch.Generator().manual_seed(0))[0], columns=8)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
