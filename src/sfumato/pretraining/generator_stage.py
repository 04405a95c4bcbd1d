"""Maximum-likelihood pre-training of a generator of any family on cached tokens."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.classes import spread
from sfumato.data.images import ImageSource
from sfumato.data.pictures import grid
from sfumato.engine.optimizer import descend
from sfumato.engine.schedule import cosine_schedule
from sfumato.naming import class_words
from sfumato.policy import Generator as ImageGenerator
from sfumato.policy import Policy, inverse_cdf
from sfumato.pretraining.validation import held_out, validation_stats
from sfumato.request import Inputs, Words
from sfumato.settings import PLAIN


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Settings for training a generator."""

    steps: int = 6000
    """number of optimizer steps"""
    batch_size: int = 32
    """number of images per step"""
    learning_rate: float = 1e-3
    """peak learning rate of AdamW, on a cosine schedule"""
    warmup_steps: int = 200
    """number of steps of linear warm-up"""
    weight_decay: float = 0.05
    """weight decay of AdamW, applied to matrices only"""
    max_grad_norm: float = 1.0
    """largest gradient norm; larger gradients are scaled down to it"""
    class_drop: float = 0.1
    """share of conditions replaced with the null class or caption, for classifier-free guidance"""
    label_smoothing: float = 0.0
    """probability mass spread over the whole vocabulary"""
    token_noise: float = 0.0
    """largest share of input tokens to replace with the tokens of another image in the batch at the same positions.
    Each image's share is drawn from 0 to this number; the tokens to predict do not change.
    With few training images, this teaches the generator to follow its condition and to recover from its mistakes"""
    own_tokens: float = 0.0
    """largest share of input tokens to replace with tokens drawn by the generator, to learn from its own mistakes.
    Each image's share is drawn from 0 to this number, which grows from 0 over the first quarter of the steps.
    This is scheduled sampling in two passes (Mihaylova & Martins 2019)"""
    ema_decay: float = 0.998
    """decay of the moving average of the weights; sample grids and the final model use the average"""


@torch.no_grad()
def cache_tokens(
    generator: ImageGenerator, source: ImageSource, batch_size: int = 64
) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
    """Return the tokens and labels of every item in the source."""
    parts = [source[index] for index in torch.arange(len(source)).split(batch_size)]
    return torch.cat([generator.encode(images) for images, _ in parts]), torch.cat([labels for _, labels in parts])


class GeneratorTrainer:
    """A generator, the average of its weights, and its optimizer.

    `step` trains on a batch; `state` is everything needed to resume. The condition of each item is its class, or a
    caption if the generator reads captions.
    """

    def __init__(
        self,
        model: ImageGenerator,
        source: ImageSource,
        config: GeneratorTraining,
        rng: torch.Generator,
    ):
        self.model, self.source, self.config, self.rng = model, source, config, rng
        self.reads_captions = not model.card.class_names
        self.weights = source.weights * ~source.validation if self.reads_captions else source.weights
        self.tokens, self.labels = self.encoded()
        self.average = copy.deepcopy(model.network).requires_grad_(False)
        parameters = list(model.network.parameters())
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
        )
        self.schedule = cosine_schedule(config.steps, config.warmup_steps)

    def step(self, step: int) -> dict[str, float]:
        config = self.config
        index = torch.multinomial(self.weights, config.batch_size, replacement=True, generator=self.rng)
        dropped = torch.rand(config.batch_size, generator=self.rng) < config.class_drop
        inputs = self.model.inputs(self.words(index, self.rng)).drop(dropped)
        own_tokens = config.own_tokens * min(1.0, 4 * step / config.steps)
        loss, stats = self.loss(inputs, *self.lesson(index, inputs, own_tokens))
        norm = descend(self.optimizer, loss, config.learning_rate * self.schedule(step), config.max_grad_norm)
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.model.network.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        return {**stats, "grad_norm": norm}

    def encoded(self) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
        """Return the tokens and labels of every item in the source."""
        return cache_tokens(self.model, self.source)

    def lesson(
        self, index: Int[Tensor, " B"], inputs: Inputs, own_tokens: float
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Return the tokens to predict for the items with these numbers, and those to read."""
        tokens = self.tokens[index]
        return tokens, self.disturbed(inputs, tokens, own_tokens)

    def words(self, index: Int[Tensor, " B"], rng: torch.Generator) -> Words:
        """Return the words for the items with these numbers: their classes, or a caption of each."""
        if self.reads_captions:
            return Words(names=tuple(self.source.captions(index, rng)))
        return class_words(self.labels[index].tolist(), self.source.class_names)

    def disturbed(self, inputs: Inputs, tokens: Int[Tensor, "B L"], own_tokens: float) -> Int[Tensor, "B L"]:
        """Replace up to `token_noise` of each image's tokens with those of another image in the batch, and then up to
        `own_tokens` with tokens that the generator draws given the result."""
        read = tokens
        if self.config.token_noise:
            read = self.mixed(read, tokens.roll(1, 0), self.config.token_noise)
        if own_tokens:
            with torch.no_grad():
                probabilities = self.model.logits(inputs, read, PLAIN).softmax(-1)
            uniforms = torch.rand(tokens.shape, generator=self.rng)
            read = self.mixed(read, inverse_cdf(probabilities, uniforms), own_tokens)
        return read

    def mixed(self, tokens: Int[Tensor, "B L"], others: Int[Tensor, "B L"], most: float) -> Int[Tensor, "B L"]:
        """Replace a share of each image's tokens with others; the share is drawn from 0 to `most`."""
        share = most * torch.rand(len(tokens), 1, generator=self.rng)
        return torch.where(torch.rand(tokens.shape, generator=self.rng) < share, others, tokens)

    def loss(
        self, inputs: Inputs, tokens: Int[Tensor, "B L"], read: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the mean cross entropy of the tokens given those `read`, and the share predicted correctly."""
        logits, smoothing = self.model.logits(inputs, read, PLAIN).flatten(0, 1), self.config.label_smoothing
        losses = F.cross_entropy(logits, tokens.flatten(), label_smoothing=smoothing, reduction="none")
        loss = self.mean(losses.view_as(tokens))
        accuracy = (logits.detach().argmax(-1) == tokens.flatten()).float().mean()
        return loss, {"loss": loss.item(), "accuracy": accuracy.item()}

    def mean(self, losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
        """Return the mean of the losses of all tokens."""
        return losses.mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean cross entropy (nats per token) of held-out images with the averaged weights, and the share of
        tokens predicted correctly; empty if no images are held out."""
        generator = self.averaged()

        def measure(items: Int[Tensor, " B"]) -> dict[str, float]:
            inputs = generator.inputs(self.words(items, torch.Generator().manual_seed(0)))
            tokens = self.tokens[items]
            logits = generator.logits(inputs, tokens, PLAIN)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
            return {"loss": loss.item(), "accuracy": (logits.argmax(-1) == tokens).float().mean().item()}

        return validation_stats(held_out(self.weights), self.config.batch_size, measure)

    def averaged(self) -> ImageGenerator:
        """Return the generator with the averaged weights; it shares the tokenizer."""
        return self.model.with_network(self.average.eval())

    def sample(self) -> Image.Image:
        """Draw a grid of images for items spread over the source, four each, with the averaged weights."""
        index = torch.tensor(spread(len(self.labels), 16))
        policy = Policy(self.averaged(), self.model.card.settings)
        request = policy.request(self.words(index, torch.Generator().manual_seed(0)).repeat(4))
        return grid(policy.draw(request, torch.arange(64)), columns=8)

    def state(self) -> dict:
        return {
            "model": self.model.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict) -> None:
        self.model.network.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
