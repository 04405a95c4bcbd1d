"""Contrastive training of an image-text model (Radford et al., 2021, Figure 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.classes import spread
from sfumato.data.images import ImageSource
from sfumato.data.pictures import grid
from sfumato.emoji.augmentations import degrade, move
from sfumato.emoji.image_text import ImageTextModel
from sfumato.engine.optimizer import descend
from sfumato.engine.schedule import cosine_schedule
from sfumato.pretraining.validation import validation_stats
from sfumato.request import CaptionFeatures

VALIDATION_EVERY = 16
"""One in this many classes is held out: neither its images nor its name is used in training."""


@dataclass(frozen=True, kw_only=True)
class ImageTextTraining:
    """Settings for training an image-text model."""

    steps: int = 1000
    """number of optimizer steps"""
    batch_size: int = 96
    """number of images and captions per step, each of a different class"""
    learning_rate: float = 1e-3
    """peak learning rate of AdamW, on a cosine schedule"""
    warmup_steps: int = 100
    """number of steps of linear warm-up"""
    max_grad_norm: float = 5.0
    """largest gradient norm; larger gradients are scaled down to it"""


def contrastive_loss(
    images: Float[Tensor, "B D"], captions: Float[Tensor, "B D"], log_scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return CLIP's symmetric cross entropy over the pairs of a batch, and the share of images whose nearest caption is
    their own."""
    logits = log_scale.clamp_max(4.6052).exp() * images @ captions.T  # at most 100, as published
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


def one_per_class(items: Int[Tensor, " M"], labels: Int[Tensor, " N"]) -> Int[Tensor, " B"]:
    """Return the first of the items of each class, in the order of the items."""
    first = {int(label): i for i, label in reversed(list(enumerate(labels[items])))}
    return items[sorted(first.values())]


class ImageTextTrainer:
    """An image-text model and its optimizer.

    `step` trains on a batch; `state` is everything needed to resume. Every sixteenth class is held out; of
    the other classes, only the source's held-out items are.
    """

    def __init__(self, model: ImageTextModel, source: ImageSource, config: ImageTextTraining, rng: torch.Generator):
        self.model, self.source, self.config, self.rng = model, source, config, rng
        self.labels = torch.cat([source[index][1] for index in torch.arange(len(source)).split(256)])
        self.validation = torch.arange(len(source.class_names)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        self.weights = source.weights * ~source.validation * ~self.validation[self.labels]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
        self.schedule = cosine_schedule(config.steps, config.warmup_steps)

    def step(self, step: int) -> dict[str, float]:
        self.model.train()
        loss, accuracy = self.loss(self.draw(), self.rng)
        descend(self.optimizer, loss, self.config.learning_rate * self.schedule(step), self.config.max_grad_norm)
        return {"loss": loss.item(), "accuracy": accuracy.item(), "scale": self.model.log_scale.exp().item()}

    def loss(self, items: Int[Tensor, " B"], rng: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the contrastive loss of these items, randomly disturbed, and the share of images matched correctly."""
        images = degrade(move(self.source[items][0], rng), rng)
        text = CaptionFeatures.padded(self.model.reader.encode(self.source.captions(items, rng)))
        return contrastive_loss(self.model.embed_images(images), self.model.embed_text(text), self.model.log_scale)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss of held-out items, one of each class that is not held out as a whole, and the share matched
        correctly; empty if there are none.

        A batch with fewer classes than in training is easier, so its loss is lower.
        """
        self.model.eval()
        items = ((self.weights == 0) & ~self.validation[self.labels]).nonzero()[:, 0]
        items = one_per_class(items, self.labels)[: self.config.batch_size]

        def measure(items: Int[Tensor, " B"]) -> dict[str, float]:
            loss, accuracy = self.loss(items, torch.Generator().manual_seed(0))
            return {"loss": loss.item(), "accuracy": accuracy.item()}

        return validation_stats(items, self.config.batch_size, measure)

    def draw(self) -> Int[Tensor, " B"]:
        """Draw items of different classes, because a caption must not fit two images.

        The batch is smaller if there are not enough classes.
        """
        drawn = torch.multinomial(self.weights, 4 * self.config.batch_size, replacement=True, generator=self.rng)
        return one_per_class(drawn, self.labels)[: self.config.batch_size]

    @torch.no_grad()
    def recall(self, classes: Int[Tensor, " C"], among: Int[Tensor, " M"], seed: int = 10**6) -> tuple[float, float]:
        """Measure how often an image of one of the `classes` is matched to its name among the names of `among`.

        Returns:
            The share of images whose own name is nearest, and the share whose own name is among the nearest five.
        """
        self.model.eval()
        rng = torch.Generator().manual_seed(seed)
        items = torch.isin(self.labels, classes).nonzero()[:, 0]
        names = self.model.embed_captions([self.source.class_names[i] for i in among.tolist()])
        hits = torch.zeros(2)
        for index in items.split(256):
            images = self.model.embed_images(degrade(move(self.source[index][0], rng), rng))
            nearest = among[(images @ names.T).topk(min(5, len(among))).indices]
            matches = nearest == self.labels[index][:, None]
            hits += torch.stack([matches[:, 0].sum(), matches.sum()])
        first, five = (hits / len(items)).tolist()
        return first, five

    def report(self) -> dict[str, float]:
        """Return the recall of names: held-out classes among themselves and among all, and other classes among all.

        With fewer than sixteen classes, no class is held out.
        """
        validation, others = self.validation.nonzero()[:, 0], (~self.validation).nonzero()[:, 0]
        everything = torch.arange(len(self.validation))
        result = {}
        for name, classes, among in (
            ("validation", validation, validation),
            ("validation_among_all", validation, everything),
            ("trained_among_all", others, everything),
        ):
            if not len(classes):
                continue
            result[f"{name}_recall_1"], result[f"{name}_recall_5"] = self.recall(classes, among)
        return result

    def sample(self) -> Image.Image:
        """Draw a grid of images as the model sees them."""
        rng = torch.Generator().manual_seed(0)
        images = self.source[torch.tensor(spread(len(self.source), 32))][0]
        return grid(degrade(move(images, rng), rng), columns=8)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
