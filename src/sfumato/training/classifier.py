"""Training of the classifiers on augmented images: the evaluation's here, those of the rewards' in `rival.py`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.images import EmojiImages, ImageSource, compose
from sfumato.models.classifier import Classifier, PatchClassifier
from sfumato.training.optimizer import descend
from sfumato.training.pictures import grid
from sfumato.training.schedule import cosine_schedule


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """How a classifier is trained."""

    steps: int = 2000
    """optimizer steps"""
    batch_size: int = 64
    """images a step"""
    learning_rate: float = 2e-3
    """peak of AdamW's cosine schedule"""
    warmup_steps: int = 100
    """linear warm-up"""
    max_grad_norm: float = 10.0
    """gradient clipping"""
    label_smoothing: float = 0.05
    """probability mass spread over the classes"""


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Numbers between `low` and `high`."""
    return torch.rand(shape, generator=rng) * (high - low) + low


def move(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Shift, turn and scale, each image by its own draw."""
    batch = len(images)
    angle, zoom = uniform(rng, -0.2, 0.2, batch), uniform(rng, 0.85, 1.25, batch)
    turn = torch.stack([angle.cos() * zoom, -angle.sin() * zoom, angle.sin() * zoom, angle.cos() * zoom], dim=1)
    affine = torch.cat([turn.unflatten(1, (2, 2)), uniform(rng, -0.15, 0.15, batch, 2, 1)], dim=2)
    places = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def relight(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Change contrast, brightness and colour balance, each image by its own draw."""
    batch = len(images)
    contrast, brightness = uniform(rng, 0.5, 1.2, batch, 1, 1, 1), uniform(rng, -0.1, 0.1, batch, 1, 1, 1)
    return (images * contrast + brightness) * uniform(rng, 0.9, 1.1, batch, 3, 1, 1)


def degrade(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Blur and add noise, each image by its own draw; the result stays in [0, 1]."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, uniform(rng, 0, 1, len(images), 1, 1, 1))
    noise = torch.randn(images.shape, generator=rng)
    return (images + noise * uniform(rng, 0, math.sqrt(0.06), len(images), 1, 1, 1).square()).clamp(0, 1)


def augment(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Images moved, relit and degraded, each by its own draw; they stay in [0, 1]."""
    return degrade(relight(move(images, rng), rng), rng)


def random_scenes(source: ImageSource, count: int, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " B"]]:
    """Images and labels; of emoji, on any background colour in any light rather than in the source's own scenes."""
    if not isinstance(source, EmojiImages):
        index = torch.multinomial(source.weights, count, replacement=True, generator=rng)
        return source[index]
    labels = torch.randint(len(source.sprites), (count,), generator=rng)
    grey = torch.rand(count, 1, generator=rng)
    backgrounds = torch.lerp(
        grey.expand(-1, 3), torch.rand(count, 3, generator=rng), torch.rand(count, 1, generator=rng)
    )
    lights = 0.4 + 0.6 * torch.rand(count, generator=rng)
    return compose(source.sprites[labels], backgrounds, lights), labels


def augmented_scenes(source: ImageSource, count: int, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " B"]]:
    """Augmented images in [0, 1], and labels."""
    images, labels = random_scenes(source, count, rng)
    return augment(images, rng), labels


Draw = Callable[[ImageSource, int, torch.Generator], tuple[Tensor, Tensor]]
"""so many augmented images of a source, and their labels"""


class ClassifierTrainer:
    """One classifier and its optimizer: `step` trains on a batch, `state` is all that resumes."""

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
    def held_out_accuracy(self, count: int = 2048, seed: int = 10**6) -> tuple[float, float]:
        """Top-1 and top-5 accuracy on augmented images from a random stream that training never draws."""
        rng, hits = torch.Generator().manual_seed(seed), torch.zeros(2)
        for _ in range(count // 64):
            images, labels = self.draw(self.source, 64, rng)
            logits = self.model.eval()(images)
            top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits += torch.stack([top[:, 0].sum(), top.sum()])
        top1, top5 = (hits / (count // 64 * 64)).tolist()
        return top1, top5

    def sample(self) -> Image.Image:
        """Augmented images, as the classifier sees them."""
        return grid(self.draw(self.source, 32, torch.Generator().manual_seed(0))[0], columns=8)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
