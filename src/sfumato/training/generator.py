"""Pre-training of a next-scale generator on cached tokens, by maximum likelihood."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.models.var import VAR
from sfumato.models.vqvae import MultiScaleVQVAE
from sfumato.policy import Policy
from sfumato.rollout import Conditions
from sfumato.training.pictures import grid
from sfumato.training.schedule import cosine_schedule


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
    """share of labels replaced by the null class, for guidance"""
    label_smoothing: float = 0.0
    """probability mass spread over the vocabulary"""
    ema_decay: float = 0.998
    """moving average of the weights; the average is what is sampled and shipped"""


@torch.no_grad()
def cache_tokens(
    tokenizer: MultiScaleVQVAE, source: ImageSource, batch_size: int = 64
) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
    """Tokens and labels of every item of the source."""
    parts = [source[index] for index in torch.arange(len(source)).split(batch_size)]
    return torch.cat([tokenizer.encode(images) for images, _ in parts]), torch.cat([labels for _, labels in parts])


class GeneratorTrainer:
    """One generator, its average and its optimizer: `step` trains on a batch, `state` is all that resumes."""

    def __init__(self, model: VAR, source: ImageSource, config: GeneratorTraining, rng: torch.Generator):
        self.model, self.config, self.rng = model, config, rng
        self.weights = source.weights
        self.tokens, self.labels = cache_tokens(model.tokenizer, source)
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
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self.schedule(step)
        index = torch.multinomial(self.weights, config.batch_size, replacement=True, generator=self.rng)
        dropped = torch.rand(config.batch_size, generator=self.rng) < config.class_drop
        labels = self.labels[index].masked_fill(dropped, self.model.null_class)
        loss, stats = self.loss(labels, self.tokens[index])
        loss.backward()
        parameters = list(self.model.transformer.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), parameters, strict=True):
                average.lerp_(parameter, 1 - decay)
        return {**stats, "grad_norm": norm.item()}

    def loss(self, labels: Int[Tensor, " B"], tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean cross entropy over all tokens, and the share of tokens that are the likeliest."""
        conditions = Conditions(labels=labels, names=("",) * len(labels))
        logits = self.model.logits(conditions, tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens.flatten(), label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(-1) == tokens.flatten()).float().mean()
        return loss, {"loss": loss.item(), "accuracy": accuracy.item()}

    def averaged(self) -> VAR:
        """The generator with the averaged weights (sharing the tokenizer)."""
        model = VAR(self.model.config, self.model.tokenizer, self.model.class_names)
        model.transformer = self.average
        return model.eval()

    def sample(self) -> Image.Image:
        """Images of classes spread over all of them, four draws each, from the averaged weights."""
        names = self.model.class_names
        labels = torch.linspace(0, len(names) - 1, 16).long().repeat_interleave(4)
        conditions = Conditions(labels=labels, names=tuple(names[i] for i in labels.tolist()))
        policy = Policy(self.averaged(), temperature=0.7)
        return grid(policy.decode(policy.sample(conditions, torch.arange(64)).tokens), columns=8)

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
