"""Pre-training of a generator of any family on cached tokens, by maximum likelihood."""

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.classes import caption_conditions, class_conditions, spread
from sfumato.data.images import ImageSource
from sfumato.data.pictures import grid
from sfumato.engine.optimizer import descend
from sfumato.engine.schedule import cosine_schedule
from sfumato.policy import Generator, drawing_policy, inverse_cdf, with_transformer
from sfumato.rollout import Conditions
from sfumato.text.encoders import TextEncoder


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """How a generator is trained."""

    steps: int = 6000
    """optimizer steps"""
    batch_size: int = 32
    """images a step"""
    learning_rate: float = 1e-3
    """peak of AdamW's cosine schedule"""
    warmup_steps: int = 200
    """linear warm-up"""
    weight_decay: float = 0.05
    """AdamW's decay, on matrices only"""
    max_grad_norm: float = 1.0
    """gradient clipping"""
    class_drop: float = 0.1
    """share of conditions replaced by the null class or caption, for guidance"""
    label_smoothing: float = 0.0
    """probability mass spread over the vocabulary"""
    token_noise: float = 0.0
    """the largest share of the tokens read that are replaced by those of another image of the batch at the same place
    (each image's share is drawn from 0 to this), so that a generator that has seen few images learns to follow its
    condition and to go on from its own slips; the tokens to be predicted stay"""
    own_tokens: float = 0.0
    """the largest share of the tokens read that are replaced by the generator's own draws (again each image's share is
    drawn from 0 to this), so that it learns to go on from the slips that it makes: scheduled sampling in two passes
    (Mihaylova & Martins 2019); grows from 0 over the first quarter of the steps"""
    ema_decay: float = 0.998
    """moving average of the weights; the average is what is sampled and shipped"""


@torch.no_grad()
def cache_tokens(
    generator: Generator, source: ImageSource, batch_size: int = 64
) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
    """Tokens and labels of every item of the source."""
    parts = [source[index] for index in torch.arange(len(source)).split(batch_size)]
    return torch.cat([generator.encode(images) for images, _ in parts]), torch.cat([labels for _, labels in parts])


class GeneratorTrainer:
    """One generator, its average and its optimizer: `step` trains on a batch, `state` is all that resumes.

    With a `reader` of captions each item is asked for in words, otherwise by its class.
    """

    def __init__(
        self,
        model: Generator,
        source: ImageSource,
        config: GeneratorTraining,
        rng: torch.Generator,
        reader: TextEncoder | None = None,
    ):
        self.model, self.source, self.config, self.rng, self.reader = model, source, config, rng, reader
        self.weights = source.weights if reader is None else source.weights * ~source.held_out
        self.tokens, self.labels = cache_tokens(model, source)
        self.average = copy.deepcopy(model.transformer).requires_grad_(False)
        parameters = list(model.transformer.parameters())
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
        conditions, tokens = replace(self.conditions(index, self.rng), null=dropped), self.tokens[index]
        own_tokens = config.own_tokens * min(1.0, 4 * step / config.steps)
        loss, stats = self.loss(conditions, tokens, self.disturbed(conditions, tokens, own_tokens))
        norm = descend(self.optimizer, loss, config.learning_rate * self.schedule(step), config.max_grad_norm)
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.model.transformer.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        return {**stats, "grad_norm": norm}

    def conditions(self, index: Int[Tensor, " B"], rng: torch.Generator) -> Conditions:
        """What the items with these numbers show: their classes, or a caption of each."""
        if self.reader is None:
            return class_conditions(self.labels[index].tolist(), self.source.class_names)
        return caption_conditions(self.source.captions(index, rng), self.reader.encode, self.model.longest_caption)

    def disturbed(self, conditions: Conditions, tokens: Int[Tensor, "B L"], own_tokens: float) -> Int[Tensor, "B L"]:
        """The tokens with up to `token_noise` of each image's replaced by its neighbour's, and then up to `own_tokens`
        by draws of the generator that has read these."""
        read = tokens
        if self.config.token_noise:
            read = self.mixed(read, tokens.roll(1, 0), self.config.token_noise)
        if own_tokens:
            with torch.no_grad():
                probabilities = self.model.logits(conditions, read).softmax(-1)
            uniforms = torch.rand(tokens.shape, generator=self.rng)
            read = self.mixed(read, inverse_cdf(probabilities, uniforms), own_tokens)
        return read

    def mixed(self, tokens: Int[Tensor, "B L"], others: Int[Tensor, "B L"], most: float) -> Int[Tensor, "B L"]:
        """The tokens with a share of each image's replaced by others; the share is drawn from 0 to `most`."""
        share = most * torch.rand(len(tokens), 1, generator=self.rng)
        return torch.where(torch.rand(tokens.shape, generator=self.rng) < share, others, tokens)

    def loss(
        self, conditions: Conditions, tokens: Int[Tensor, "B L"], read: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean cross entropy over all tokens after those `read`, and the share of tokens that are the likeliest."""
        logits = self.model.logits(conditions, read).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens.flatten(), label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(-1) == tokens.flatten()).float().mean()
        return loss, {"loss": loss.item(), "accuracy": accuracy.item()}

    def averaged(self) -> Generator:
        """The generator with the averaged weights (sharing the tokenizer)."""
        return with_transformer(self.model, self.average.eval())

    def sample(self) -> Image.Image:
        """Images of items spread over the source, four draws each, from the averaged weights."""
        index = torch.tensor(spread(len(self.labels), 16))
        conditions = self.conditions(index, torch.Generator().manual_seed(0)).repeat(4)
        policy, keep = drawing_policy(self.averaged(), self.model.inference)
        return grid(policy.draw(conditions, torch.arange(64), filter=keep), columns=8)

    def state(self) -> dict:
        return {
            "model": self.model.transformer.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict) -> None:
        self.model.transformer.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
