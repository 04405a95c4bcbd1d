"""Treat a generator as a stochastic policy over tokens: sampling and scoring, shared by all families."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.capabilities import Forks, HasParts, Reduction
from sfumato.errors import UserError
from sfumato.naming import words_of
from sfumato.request import Inputs, Request, Words
from sfumato.rollout import Fork, Rollout
from sfumato.settings import Settings

DECODING_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention for drawing: without cuDNN, which builds a plan of 40 to 400 ms for every new number of keys."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Metadata of a model, stored in the `config.json` of its folder."""

    family: str = ""
    """name of the family, or path/to/family.py:build"""
    class_names: tuple[str, ...] = ()
    """class names; empty if the model reads captions"""
    settings: Settings = field(default_factory=Settings)
    """default sampling settings"""
    judge: str | None = None
    """classifier trained on the same classes ("emoji"); None if there is no such classifier"""


@runtime_checkable
class Generator(Protocol):
    """A frozen tokenizer and a network that emits units of tokens: `units[0]` tokens in parallel, then `units[1]`, ...

    Each family applies guidance itself: `step` and `logits` return the same guided distribution. The policy applies
    temperature and truncation.
    """

    card: Card
    """what the model says about itself: family, class names, sampling settings, judge"""
    units: tuple[int, ...]
    """number of tokens in each unit; the tokens of a unit are drawn in parallel, the units one after another"""

    @property
    def network(self) -> nn.Module:
        """The trainable part; everything else is frozen."""
        ...

    @property
    def tokenizer(self) -> nn.Module:
        """The frozen tokenizer, which converts between images and tokens."""
        ...

    def inputs(self, words: Words, /) -> Inputs:
        """Convert words to the inputs of the network."""
        ...

    def start(self, inputs: Any, settings: Settings, /) -> Any:
        """Return a new decoding state, which only `step` reads and changes."""
        ...

    def step(self, state: Any, drawn: Tensor | None, /) -> Float[Tensor, "B u V"]:
        """Return guided logits of the next unit, given the tokens of the previous unit (None for the first unit)."""
        ...

    def logits(self, inputs: Any, tokens: Int[Tensor, "B L"], settings: Settings, /) -> Float[Tensor, "B L V"]:
        """Return guided logits of all units at once, teacher-forced."""
        ...

    def filter(self, logits: Float[Tensor, "B u V"], top_k: int, top_p: float, /) -> Float[Tensor, "B u V"]:
        """Apply the family's own top-k and nucleus filter: removed logits become -inf; 0 turns either filter off."""
        ...

    def decode(self, tokens: Tensor, /) -> Float[Tensor, "B 3 H W"]:
        """Decode complete token sequences to images in [0, 1]."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"], /) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens."""
        ...

    def with_network(self, network: nn.Module, /) -> "Generator":
        """Return a copy of this generator with another network; everything else is shared."""
        ...

    def to(self, device: torch.device | str, /) -> "Generator":
        """Return this generator with its network and tokenizer on another device."""
        ...


class Policy:
    """The distribution of images that a generator and its sampling settings define.

    Scoring uses the same settings as sampling, so the log-probabilities of a rollout belong to the distribution that
    it was drawn from.
    """

    def __init__(self, generator: Generator, settings: Settings | None = None, positions: int = 0):
        """Define a policy.

        Args:
            generator: what draws.
            settings: sampling settings.
            positions: number of positions whose logits scoring holds at once, for a generator that `ReducesLogits`; 0
                for all.
        """
        self.generator, self.positions = generator, positions
        self.settings = settings or Settings()
        for name in ("temperature", "top_k", "top_p", "guidance"):
            if getattr(self.settings, name) is not None:
                self.settings.at(name, len(generator.units))  # rejects lists of the wrong length

    def __repr__(self) -> str:
        """Return the family, the size and the settings."""
        card, count = self.generator.card, sum(p.numel() for p in self.generator.network.parameters())
        return f"Policy({card.family}, {count / 1e6:.1f} million parameters, {self.settings})"

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.generator.network.parameters()).device

    def request(self, asked: Words | str | int | Sequence[str | int]) -> Request:
        """Build a request: words and the network inputs for them.

        Args:
            asked: words, or one or several classes (by name, number or range) or captions.

        Raises:
            UserError: there is no such class.
        """
        words = asked if isinstance(asked, Words) else words_of(asked, self.generator.card.class_names)
        return Request(words=words, inputs=self.generator.inputs(words))

    @torch.no_grad()
    @sdpa_kernel(DECODING_KERNELS)
    def sample(
        self, request: Request, seeds: Integer[Tensor, " B"], fork: Fork | None = None, count: int | None = None
    ) -> Rollout:
        """Sample one image per request, as tokens.

        Args:
            request: B requests.
            seeds: one non-negative number per image; it alone determines the image's random draws, so the other
                images in the batch make no difference.
            fork: if given, adjacent images share their first units, whose draws are those of the first one's seed. They
                must have the same request, and the generator `Forks`.
            count: number of units to draw; None for all. They are the first units of the images that the seeds give.

        Returns:
            The tokens, with log-probabilities and entropies of the distribution they were drawn from (after
            truncation, if the settings truncate).
        """
        generator, device = self.generator, self.device
        uniforms = uniform_numbers(seeds, sum(generator.units)).to(device)
        copies = fork.continuations if fork else 1  # of what is drawn so far
        state = generator.start(request[::copies].inputs.to(device), self.settings)
        parts: list[tuple[Tensor, ...]] = []
        for unit, unit_uniforms in enumerate(uniforms.split(generator.units, dim=1)[:count]):
            if fork and unit == fork.unit:
                assert isinstance(generator, Forks)
                state, parts, copies = generator.fork(state, copies), [repeated(part, copies) for part in parts], 1
            drawn = parts[-1][0] if parts else None
            parts.append(self.choose(generator.step(state, drawn), unit, unit_uniforms[::copies]))
        tokens, log_probs, entropy = (torch.cat(units, dim=1) for units in zip(*parts, strict=True))
        units = tuple(generator.units)
        return Rollout(
            request=request,
            tokens=tokens,
            log_probs=log_probs,
            entropy=entropy,
            units=units[:count],
            whole_units=units if units[:count] != units else (),
            parts=generator.parts(tokens) if isinstance(generator, HasParts) else {},
        )

    def choose(
        self, logits: Float[Tensor, "B u V"], unit: int, uniforms: Float[Tensor, "B u"]
    ) -> tuple[Int[Tensor, "B u"], Float[Tensor, "B u"], Float[Tensor, "B u"]]:
        """Draw the tokens of a unit from its guided logits; return them, their log-probabilities and the entropies."""
        log_probs = self._adjust(logits.float(), unit).log_softmax(-1)
        drawn = inverse_cdf(log_probs.exp(), uniforms)
        return drawn, log_probs.gather(-1, drawn[..., None])[..., 0], entropy_of(log_probs)

    @torch.no_grad()
    def sample_given(self, request: Request, context: Int[Tensor, "B L"], seeds: Integer[Tensor, " B"]) -> Rollout:
        """Sample each token given the units of `context` before it, instead of those that are drawn (teacher forcing).

        Args:
            request: B requests.
            context: tokens of whole images.
            seeds: one non-negative number per image, as for `sample`.
        """
        units = tuple(self.generator.units)
        logits = self.generator.logits(request.inputs.to(self.device), context, self.settings)
        uniforms = uniform_numbers(seeds, sum(units)).to(self.device)
        inputs = zip(logits.split(units, dim=1), uniforms.split(units, dim=1), strict=True)
        parts = [self.choose(part, unit, numbers) for unit, (part, numbers) in enumerate(inputs)]
        tokens, log_probs, entropy = (torch.cat(chosen, dim=1) for chosen in zip(*parts, strict=True))
        return Rollout(
            request=request, tokens=tokens, log_probs=log_probs, entropy=entropy, units=units, context=context
        )

    def log_probs(
        self,
        request: Request,
        tokens: Int[Tensor, "B L"],
        units: tuple[int, ...] = (),
        context: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Return the log-probability (nats) of each token given the previous units; -inf if truncation removes it.

        Args:
            request: B requests.
            tokens: their tokens.
            units: number of tokens in each unit, if the tokens may be those of the first units only.
            context: tokens that make up the previous units; by default, `tokens` themselves.
        """

        def log_probs(logits: Tensor, span: slice) -> Tensor:
            drawn = tokens[:, span]
            return -F.cross_entropy(logits.flatten(0, 1), drawn.flatten(), reduction="none").unflatten(0, drawn.shape)

        return self._score(request, tokens if context is None else context, log_probs, units)

    def log_probs_and_entropy(
        self,
        request: Request,
        tokens: Int[Tensor, "B L"],
        units: tuple[int, ...] = (),
        context: Int[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Return the log-probability of each token, as `log_probs` does, and the entropy of its distribution (nats),
        from one pass."""

        def both(logits: Tensor, span: slice) -> Tensor:
            log_probs = logits.log_softmax(-1)
            drawn = log_probs.gather(-1, tokens[:, span, None])[..., 0]
            return torch.stack([drawn, entropy_of(log_probs)], dim=-1)

        log_probs, entropy = self._score(request, tokens if context is None else context, both, units).unbind(-1)
        return log_probs, entropy

    def entropy(self, request: Request, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Return the entropy (nats) of the distribution at each token, given the previous units."""
        return self._score(request, tokens, lambda logits, span: entropy_of(logits.log_softmax(-1)))

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "B L"], count: int | None = None) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens to images in [0, 1].

        Args:
            tokens: tokens of B images.
            count: number of units that the tokens are, if they are the first ones only; the generator then
                `DecodesPrefixes`.
        """
        generator: Any = self.generator
        return generator.decode(tokens) if count is None else generator.decode(tokens, count)

    def texts(self, tokens: Int[Tensor, "B L"]) -> tuple[str, ...]:
        """Return the text that the model wrote before each image; empty for a model that writes none."""
        return self.generator.texts(tokens) if isinstance(self.generator, HasParts) else ()

    def draw(
        self,
        asked: Request | Words | str | int | Sequence[str | int],
        seeds: Integer[Tensor, " B"] | None = None,
        batch_size: int = 64,
        *,
        n: int = 1,
        seed: int = 0,
    ) -> Float[Tensor, "B 3 H W"]:
        """Sample and decode images: `policy.draw("red apple", n=4, seed=0)`.

        Args:
            asked: one or several classes (by name, number or range), captions, words, or a request.
            seeds: one number for each image; by default `seed`, `seed + 1`, ..., as `sfumato sample` counts them.
            batch_size: number of images at a time.
            n: number of images of each class or caption; they are adjacent.
            seed: number of the first image.

        Returns:
            Images in [0, 1].

        Raises:
            UserError: there is no such class, or n is below 1.
        """
        if n < 1:
            raise UserError(f"n: {n} is too small; give at least 1")
        request = (asked if isinstance(asked, Request) else self.request(asked)).repeat(n)
        seeds = torch.arange(seed, seed + len(request)) if seeds is None else seeds
        return self.draw_with_tokens(request, seeds, batch_size)[0]

    def draw_with_tokens(
        self, request: Request, seeds: Integer[Tensor, " B"], batch_size: int = 64
    ) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B L"]]:
        """Draw one image per request, some at a time; return the images in [0, 1], and their tokens."""
        parts = []
        for index in torch.arange(len(request)).split(batch_size):
            tokens = self.sample(request[index], seeds[index]).tokens
            parts.append((self.decode(tokens).float(), tokens))
        images, tokens = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(tokens)

    def _score(
        self,
        request: Request,
        tokens: Int[Tensor, "B L"],
        function: Callable[[Tensor, slice], Tensor],
        units: tuple[int, ...] = (),
    ) -> Float[Tensor, "B L *F"]:
        """Return a function of the logits at each token: all at once, or some positions at a time."""
        generator: Any = self.generator
        settings, inputs = self.settings, request.inputs.to(self.device)
        count = len(units) if 0 < len(units) < len(generator.units) else None
        cut = () if count is None else (None, count)
        in_parts = isinstance(self.generator, HasParts)
        if not in_parts and (not self.positions or settings.truncates):
            return function(self._adjust_all(generator.logits(inputs, tokens, settings, *cut).float()), slice(None))
        temperatures = torch.tensor(settings.at("temperature", len(generator.units)), device=self.device)
        counts = torch.tensor(generator.units, device=self.device)
        divisors = temperatures.repeat_interleave(counts, output_size=sum(generator.units))[:, None]

        def reduce(logits: Tensor, span: slice) -> Tensor:
            return function(self._filter(logits.float() / divisors[span], span), span)

        reduction = Reduction(reduce, self.positions or sum(generator.units))
        return generator.logits(inputs, tokens, settings, reduction, *cut[1:])

    def _filter(self, logits: Float[Tensor, "B t V"], span: slice) -> Float[Tensor, "B t V"]:
        """Apply the truncation of each position in a span, runs of positions with the same one at once."""
        settings, units = self.settings, self.generator.units
        if not settings.truncates:
            return logits
        limits = zip(units, settings.at("top_k", len(units)), settings.at("top_p", len(units)), strict=True)
        each = [(int(top_k), top_p) for unit, top_k, top_p in limits for _ in range(unit)][span]
        runs = [(limit, len(list(run))) for limit, run in groupby(each)]
        parts = logits.split([length for _, length in runs], dim=1)
        return torch.cat(
            [self.generator.filter(part, *limit) for part, (limit, _) in zip(parts, runs, strict=True)], dim=1
        )

    def _adjust_all(self, logits: Float[Tensor, "B L V"]) -> Float[Tensor, "B L V"]:
        if not self.settings.truncates and not isinstance(self.settings.temperature, tuple):
            return logits / self.settings.temperature  # all at once, since the settings are the same for all units
        parts, done = [], 0
        for number, unit in enumerate(self.generator.units):
            if done < logits.shape[1]:  # the logits may be those of the first units only
                parts.append(self._adjust(logits[:, done : done + unit], number))
                done += unit
        return torch.cat(parts, dim=1)

    def _adjust(self, logits: Float[Tensor, "B u V"], unit: int) -> Float[Tensor, "B u V"]:
        """Apply the temperature, then the truncation."""
        settings, units = self.settings, len(self.generator.units)
        logits = logits / settings.at("temperature", units)[unit]
        if not settings.truncates:
            return logits
        return self.generator.filter(logits, int(settings.at("top_k", units)[unit]), settings.at("top_p", units)[unit])


def uniform_numbers(seeds: Integer[Tensor, " B"], count: int) -> Float[Tensor, "B N"]:
    """Return `count` uniform numbers in [0, 1) for each seed, the same on every device and in every batch."""
    if (seeds < 0).any():
        raise UserError(f"seeds: {int(seeds.min())} is negative; give numbers of 0 or more")
    draws = [np.random.default_rng(seed).random(count, dtype=np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(draws))


def repeated(tensors: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Return tensors with each row `count` times; copies are adjacent."""
    return tuple(tensor.repeat_interleave(count, dim=0) for tensor in tensors)


def inverse_cdf(probabilities: Float[Tensor, "B u V"], uniforms: Float[Tensor, "B u"]) -> Int[Tensor, "B u"]:
    """Return the first token at which the cumulative probability exceeds the uniform number: a multinomial draw."""
    cumulative = probabilities.cumsum(-1)
    # Rounding leaves the total slightly off 1; scaling by it keeps every draw inside the support.
    threshold = uniforms[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp_max(probabilities.shape[-1] - 1)


def entropy_of(log_probs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Return the entropy in nats; tokens of probability 0 (log-probability -inf) contribute 0."""
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
