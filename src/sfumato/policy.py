"""A generator as a stochastic policy over tokens: sampling and scoring, the same for every family."""

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.rollout import Conditions, Rollout
from sfumato.settings import Inference, check_temperature

LogitsFilter = Callable[[Float[Tensor, "B u V"]], Float[Tensor, "B u V"]]
"""Sets the logits of tokens that must not be drawn to -inf."""


@runtime_checkable
class Generator(Protocol):
    """A frozen tokenizer and a network that emits `units[0]`, then `units[1]`, ... tokens in parallel.

    Guidance is the generator's own business: `step` and `logits` give the same guided distribution.
    """

    units: tuple[int, ...]
    guidance: float
    inference: Inference
    """how images are drawn from it outside training, if nothing else is asked for"""
    class_names: tuple[str, ...]
    text_encoder: str
    """what reads the captions of a text-conditional generator; "" for a class-conditional one"""
    longest_caption: int
    """text tokens that a text-conditional generator takes; 0 for a class-conditional one"""

    @property
    def transformer(self) -> nn.Module:
        """The trainable network; all else is frozen."""
        ...

    def start(self, conditions: Conditions) -> Any:
        """A fresh decoding state, for `step` alone to read and change."""
        ...

    def step(self, state: Any, unit_tokens: Tensor | None) -> Float[Tensor, "B u V"]:
        """Guided logits of the next unit, given the tokens of the one before (None at the first)."""
        ...

    def logits(self, conditions: Conditions, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Guided logits of all units at once, teacher-forced."""
        ...

    def decode(self, tokens: Tensor) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] of complete token sequences."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Tokens of images in [0, 1]."""
        ...

    def filter(self, logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
        """The family's own top-k and nucleus filter; removed logits become -inf, and 0 turns either off."""
        ...


def with_transformer(generator: Generator, transformer: nn.Module) -> Generator:
    """The same generator around another network; all else is shared."""
    twin = copy.copy(generator)
    twin.__dict__["_modules"] = {**generator.__dict__["_modules"], "transformer": transformer}
    return twin


def with_guidance(generator: Generator, guidance: float) -> Generator:
    """The same generator at another guidance; everything is shared."""
    twin = copy.copy(generator)
    twin.guidance = guidance
    return twin


def drawing_policy(generator: Generator, inference: Inference) -> "tuple[Policy, LogitsFilter]":
    """The generator's policy with these settings, and the filter to sample with."""
    guided = with_guidance(generator, inference.guidance)

    def keep(logits: Tensor) -> Tensor:
        return guided.filter(logits, inference.top_k, inference.top_p)

    return Policy(guided, inference.temperature), keep


class Policy:
    """The distribution that a generator draws images from at a temperature.

    Scoring divides by the same temperature as sampling, so the log-probabilities of a rollout are those of the
    distribution it was drawn from.
    """

    def __init__(self, generator: Generator, temperature: float = 1.0):
        check_temperature(temperature)
        self.generator = generator
        self.temperature = temperature

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, seeds: Integer[Tensor, " B"], filter: LogitsFilter | None = None
    ) -> Rollout:
        """Draw one image a condition, as tokens.

        Args:
            conditions: what to draw, on the generator's device.
            seeds: one non-negative number an image; it alone decides the image's draws, whatever the batch.
            filter: restricts the support, for inference; the recorded log-probabilities and entropies are then
                those of the filtered distribution.
        """
        uniforms = uniform_numbers(seeds, sum(self.generator.units)).to(conditions.labels.device)
        state = self.generator.start(conditions)
        tokens, log_probs, entropies = [], [], []
        unit_tokens = None
        for unit_uniforms in uniforms.split(self.generator.units, dim=1):
            logits = self.generator.step(state, unit_tokens).float() / self.temperature
            if filter is not None:
                logits = filter(logits)
            unit_log_probs = logits.log_softmax(-1)
            unit_tokens = inverse_cdf(unit_log_probs.exp(), unit_uniforms)
            tokens.append(unit_tokens)
            log_probs.append(unit_log_probs.gather(-1, unit_tokens[..., None])[..., 0])
            entropies.append(entropy_of(unit_log_probs))
        return Rollout(
            conditions=conditions,
            tokens=torch.cat(tokens, dim=1),
            log_probs=torch.cat(log_probs, dim=1),
            entropy=torch.cat(entropies, dim=1),
        )

    def log_probs(self, conditions: Conditions, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Log-probability (nats) of each token given those of the units before it."""
        logits = self.generator.logits(conditions, tokens).float() / self.temperature
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").unflatten(0, tokens.shape)

    def entropy(self, conditions: Conditions, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Entropy (nats) of the distribution at each token, given the tokens of the units before it."""
        logits = self.generator.logits(conditions, tokens).float() / self.temperature
        return entropy_of(logits.log_softmax(-1))

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1]."""
        return self.generator.decode(tokens)

    def draw(
        self,
        conditions: Conditions,
        seeds: Integer[Tensor, " B"],
        batch_size: int = 64,
        filter: LogitsFilter | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] of any number of conditions, sampled and decoded `batch_size` at a time."""
        parts = torch.arange(len(conditions)).split(batch_size)
        return torch.cat([self.decode(self.sample(conditions[i], seeds[i], filter).tokens).float() for i in parts])


def uniform_numbers(seeds: Integer[Tensor, " B"], count: int) -> Float[Tensor, "B N"]:
    """`count` uniform numbers in [0, 1) from each seed: the same on every device and in every batch."""
    if (seeds < 0).any():
        raise UserError(f"seeds: {int(seeds.min())} is negative; give numbers from 0 up")
    draws = [np.random.default_rng(seed).random(count, dtype=np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(draws))


def inverse_cdf(probabilities: Float[Tensor, "B u V"], uniforms: Float[Tensor, "B u"]) -> Int[Tensor, "B u"]:
    """The token at which the cumulative probability passes the uniform number: a plain multinomial draw."""
    cumulative = probabilities.cumsum(-1)
    # Rounding leaves the total a little off 1; scaling by it keeps every draw inside the support.
    threshold = uniforms[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp_max(probabilities.shape[-1] - 1)


def entropy_of(log_probs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Entropy in nats; tokens of probability 0 (log-probability -inf) count as 0."""
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
