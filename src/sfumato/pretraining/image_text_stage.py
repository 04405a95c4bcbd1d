"""Contrastive training of an image-text model (Radford et al., 2021, figure 3)."""

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
from sfumato.rollout import CaptionFeatures

HELD_OUT_EVERY = 16
"""every so many classes one is held out: neither its images nor its name is trained on"""


@dataclass(frozen=True, kw_only=True)
class ImageTextTraining:
    """How an image-text model is trained."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 96
    """images and captions a step, of different classes"""
    learning_rate: float = 1e-3
    """peak of AdamW's cosine schedule"""
    warmup_steps: int = 100
    """linear warm-up"""
    max_grad_norm: float = 5.0
    """gradient clipping"""


def contrastive_loss(
    images: Float[Tensor, "B D"], captions: Float[Tensor, "B D"], log_scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """CLIP's symmetric cross entropy over the pairs of a batch, and the share of images whose caption is nearest."""
    logits = log_scale.clamp_max(4.6052).exp() * images @ captions.T  # at most 100, as published
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


class ImageTextTrainer:
    """One image-text model and its optimizer: `step` trains on a batch, `state` is all that resumes.

    Every sixteenth class is held out, and of the others the source's held-out items.
    """

    def __init__(self, model: ImageTextModel, source: ImageSource, config: ImageTextTraining, rng: torch.Generator):
        self.model, self.source, self.config, self.rng = model, source, config, rng
        self.labels = torch.cat([source[index][1] for index in torch.arange(len(source)).split(256)])
        self.held_out = torch.arange(len(source.class_names)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.weights = source.weights * ~source.held_out * ~self.held_out[self.labels]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
        self.schedule = cosine_schedule(config.steps, config.warmup_steps)

    def step(self, step: int) -> dict[str, float]:
        index = self.draw()
        images = degrade(move(self.source[index][0], self.rng), self.rng)
        text = CaptionFeatures.padded(self.model.reader.encode(self.source.captions(index, self.rng)))
        self.model.train()
        loss, accuracy = contrastive_loss(
            self.model.embed_images(images), self.model.embed_text(text), self.model.log_scale
        )
        descend(self.optimizer, loss, self.config.learning_rate * self.schedule(step), self.config.max_grad_norm)
        return {"loss": loss.item(), "accuracy": accuracy.item(), "scale": self.model.log_scale.exp().item()}

    def draw(self) -> Int[Tensor, " B"]:
        """Items of different classes, as far as there are enough: a caption must not fit two images."""
        drawn = torch.multinomial(self.weights, 4 * self.config.batch_size, replacement=True, generator=self.rng)
        first = {int(label): i for i, label in reversed(list(enumerate(self.labels[drawn])))}
        return drawn[sorted(first.values())][: self.config.batch_size]

    @torch.no_grad()
    def recall(self, classes: Int[Tensor, " C"], among: Int[Tensor, " M"], seed: int = 10**6) -> tuple[float, float]:
        """How often an image of one of the `classes` finds its name among the names of the classes `among`.

        Returns:
            The share of images whose own name is the nearest, and that whose own name is among the nearest five.
        """
        self.model.eval()
        rng = torch.Generator().manual_seed(seed)
        items = torch.isin(self.labels, classes).nonzero()[:, 0]
        names = self.model.embed_captions([self.source.class_names[i] for i in among.tolist()])
        hits = torch.zeros(2)
        for index in items.split(256):
            images = self.model.embed_images(degrade(move(self.source[index][0], rng), rng))
            nearest = among[(images @ names.T).topk(min(5, len(among))).indices]
            found = nearest == self.labels[index][:, None]
            hits += torch.stack([found[:, 0].sum(), found.sum()])
        first, five = (hits / len(items)).tolist()
        return first, five

    def report(self) -> dict[str, float]:
        """Recall by name of the held-out classes, among themselves and among all, and of the others among all; of
        fewer than sixteen classes none is held out."""
        held_out, others = self.held_out.nonzero()[:, 0], (~self.held_out).nonzero()[:, 0]
        everything = torch.arange(len(self.held_out))
        result = {}
        for name, classes, among in (
            ("held_out", held_out, held_out),
            ("held_out_among_all", held_out, everything),
            ("trained_among_all", others, everything),
        ):
            if not len(classes):
                continue
            result[f"{name}_recall_1"], result[f"{name}_recall_5"] = self.recall(classes, among)
        return result

    def sample(self) -> Image.Image:
        """Images as the model sees them."""
        rng = torch.Generator().manual_seed(0)
        images = self.source[torch.tensor(spread(len(self.source), 32))][0]
        return grid(degrade(move(images, rng), rng), columns=8)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
