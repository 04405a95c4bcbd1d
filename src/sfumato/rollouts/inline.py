"""Rollouts that the training processes draw themselves, between updates."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.classes import WordsSampler
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.engine.streams import submit_beside
from sfumato.engine.timing import PhaseTimer
from sfumato.objectives.advantages import group_advantages, max_variance_subset
from sfumato.policy import Policy
from sfumato.request import Request, join_words
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import join_seen, statistics
from sfumato.rollout import Batch, Fork, Rollout, concatenate
from sfumato.rollouts.together import finish_together

Result = TypeVar("Result")


@dataclass(kw_only=True)
class InlineRollouts:
    """Batches of groups: each condition is drawn several times and scored. Every process does its share."""

    engine: Engine
    process: Process
    sampler: WordsSampler
    """source of the requests"""
    reward: WeightedSum
    groups: int
    """number of conditions per batch"""
    group_size: int
    """number of images per condition"""
    batch_size: int
    """number of images drawn, decoded and scored at once"""
    max_unscored: float
    """largest share of the images that a reward may leave without a score"""
    needs_reference: bool
    """whether the reference scores the tokens too"""
    scoring_size: int
    """number of images that the reference scores at once"""
    rescore: bool = False
    """whether to replace the log-probabilities of drawing by those of scoring"""
    overlap: bool = False
    """whether to score one part while the next is drawn"""
    redraws: int = 0
    """how often groups with equal rewards are drawn again"""
    candidates: int = 0
    """number of images drawn per condition, of which the `group_size` whose rewards have the largest variance are kept;
    0 to draw no more than are kept"""
    prefix_probabilities: tuple[float, ...] = ()
    """probability that a batch keeps the tokens of the first 1, 2, ... units; others are forgotten; empty for all"""
    preview: int | None = None
    """number of first units that are drawn, decoded and scored alone; None for whole images"""
    fork: Fork | None = None
    """how images share their first units; None if each is drawn alone"""

    @property
    def drawn_per_group(self) -> int:
        """Number of images drawn per condition."""
        return self.candidates or self.group_size

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Draw, decode and score a batch, and score its tokens with the reference if the objective needs one.

        Groups with equal rewards, which teach nothing, are drawn again up to `redraws` times (dynamic sampling, DAPO,
        arXiv 2503.14476, section 3.2).

        Raises:
            UserError: a reward failed on any process, or left too many images without a score. All processes raise it.
        """
        units = self._draw_units(rng)
        batch, redrawn = self._draw(self.groups, rng, timer, units), 0
        for _ in range(self.redraws):
            _, equal = group_advantages(batch.rewards, self.group_size)
            places = equal.nonzero()[:, 0].tolist()
            if not places:
                break
            # Rounded up so that the processes share the images equally; what is too many is dropped.
            parts = self.process.count * (self.fork.continuations if self.fork else 1)
            share = parts // math.gcd(parts, self.group_size, self.drawn_per_group)
            fresh = self._draw(-(-len(places) // share) * share, rng, timer, units)
            batch, redrawn = self._with_groups(batch, places, fresh), redrawn + len(places)
        kept = {"kept_units": units} if units else {}
        again = {"redrawn_groups": redrawn} if self.redraws else {}
        return replace(batch, metrics={**batch.metrics, **kept, **again})

    def _draw(self, groups: int, rng: torch.Generator, timer: PhaseTimer, units: int | None) -> Batch:
        """Draw and score this number of groups; keep the best candidates, and the tokens of this number of units."""
        words = self.sampler.next(groups, rng).repeat(self.drawn_per_group)
        seeds = torch.randint(2**62, (len(words),), generator=rng)
        with self.process.together():
            request = self.engine.policy.request(words).to(self.process.device)
        batch = self.collect(request, seeds, timer, units)
        return self._chosen(batch, timer) if self.candidates else batch

    def _chosen(self, batch: Batch, timer: PhaseTimer) -> Batch:
        """Return a batch with the best candidates of each group only, and what the reference says to these."""
        groups = batch.rewards.cpu().unflatten(0, (-1, self.candidates))
        chosen = [max_variance_subset(group, self.group_size) for group in groups]
        index = torch.cat([number * self.candidates + positions for number, positions in enumerate(chosen)])
        batch = replace(batch[index], metrics=batch.metrics, group_size=self.group_size)
        with self.process.together():
            drawn = batch.rollout[self.process.share(len(batch))]
            compared = self._compare(drawn, timer, reference=self.needs_reference)
        return self._with_log_probs(batch, compared)

    @property
    def _possible_units(self) -> list[int]:
        """How many first units a batch may keep; none if always all."""
        return [number for number, probability in enumerate(self.prefix_probabilities, 1) if probability > 0]

    def _draw_units(self, rng: torch.Generator) -> int | None:
        """Draw the number of first units that a batch keeps; None if it is the same for all batches."""
        if len(self._possible_units) < 2:
            return None
        probabilities = torch.tensor(self.prefix_probabilities, dtype=torch.float64)
        return 1 + int(torch.multinomial(probabilities, 1, generator=rng))

    def _with_groups(self, batch: Batch, places: list[int], fresh: Batch) -> Batch:
        """Return a batch with the groups at these places replaced. Its metrics stay those of the first draw: groups
        that are chosen by their rewards would say nothing about the policy."""
        size, count = self.group_size, len(batch) // self.group_size
        chosen = torch.arange(count)
        chosen[places] = count + torch.arange(len(places))
        index = (chosen[:, None] * size + torch.arange(size)).flatten()

        def merged(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first, second])[index.to(first.device)]

        words = join_words(batch.rollout.request.words, fresh.rollout.request.words)[index]
        with self.process.together():
            request = self.engine.policy.request(words).to(self.process.device)
        tensors = {
            name: merged(getattr(batch.rollout, name), getattr(fresh.rollout, name))
            for name in ("tokens", "log_probs", "entropy")
        }
        masks = {name: merged(mask, fresh.rollout.parts[name]) for name, mask in batch.rollout.parts.items()}
        reference = None
        if batch.reference_log_probs is not None and fresh.reference_log_probs is not None:
            reference = merged(batch.reference_log_probs, fresh.reference_log_probs)
        return replace(
            batch,
            rollout=replace(batch.rollout, request=request, parts=masks, **tensors),
            rewards=merged(batch.rewards, fresh.rewards),
            scores={name: merged(scores, fresh.scores[name]) for name, scores in batch.scores.items()},
            reference_log_probs=reference,
        )

    @torch.no_grad()
    def collect(self, request: Request, seeds: Tensor, timer: PhaseTimer, units: int | None = None) -> Batch:
        """Draw and score one image per request; the images of a group are adjacent.

        The tokens of the first `units` units are kept; by default, of as many as a batch may keep. If there are
        candidates, all of them are returned, and the reference has yet to score those that are chosen.
        """
        engine, process = self.engine, self.process
        units = units or max(self._possible_units, default=None)
        tree = self.fork.continuations if self.fork else 1
        policy, autocast = engine.policy, engine.autocast
        share = process.share(len(request))
        parts, scoring, reference = [], [], []
        beside = self.overlap and engine.reference_beside and self.needs_reference and not self.candidates
        with process.together(), scoring_pool(self.overlap, process.device) as submit:
            with engine.drawing():
                for index in torch.arange(share.start, share.stop).split(self.batch_size // tree * tree):
                    part = request[index]
                    with timer("sample"), autocast():
                        parts.append(engine.sample(part, seeds[index], self.fork, self.preview))
                    with timer("decode"), autocast():
                        images = policy.decode(parts[-1].tokens, self.preview).float()
                    if units:
                        parts[-1] = parts[-1].prefix(units)
                    # After a failure only scoring ends: drawing may need all processes.
                    if not any(scored.done() and scored.exception() for scored in scoring):
                        with timer("reward"):
                            scoring.append(submit(self.reward.see, images, part.words))
                    if beside:
                        reference.append(submit(self._ask_reference, parts[-1]))
            drawn, compared = concatenate(parts, request[share]), {}
            if not self.candidates:
                compared = self._compare(drawn, timer, reference=self.needs_reference and not beside)
            with timer("reward"):
                seen = join_seen([scored.result() for scored in scoring])
            if beside:
                compared["reference"] = torch.cat([scored.result() for scored in reference])
        rollout = process.gather_rollout(drawn, request)
        seen = {name: process.gather(part) for name, part in seen.items()}
        with timer("reward"):
            groups = torch.arange(len(request)) // self.drawn_per_group
            rewards, scores = finish_together(self.reward, process, seen, request.words, groups)
        self.reward.check_scored(scores, self.max_unscored)
        self.reward.update(seen)
        batch = Batch(
            rollout=rollout,
            rewards=rewards,
            scores=scores,
            weights={name: part.weight for name, part in self.reward.parts.items()},
            group_size=self.group_size,
            tree_size=tree,
            metrics={**statistics(rewards, scores), "entropy": rollout.entropy.mean().item(), **part_figures(rollout)},
        )
        return batch if self.candidates else self._with_log_probs(batch, compared)

    def _compare(self, drawn: Rollout, timer: PhaseTimer, *, reference: bool) -> dict[str, Tensor]:
        """Return log-probabilities of drawn tokens: `reference`, if it is asked for, and `log_probs`, if those of
        scoring replace those of drawing."""
        compared = {}
        if reference:
            with timer("reference"):
                compared["reference"] = self._ask_reference(drawn)
        if self.rescore or self.engine.scorer.settings != self.engine.policy.settings:
            with timer("reference"):
                compared["log_probs"] = self._score(self.engine.scorer, drawn)
        return compared

    def _with_log_probs(self, batch: Batch, compared: dict[str, Tensor]) -> Batch:
        """Return a batch with what `_compare` returned for the share of each process."""
        found = {name: self.process.gather(log_probs) for name, log_probs in compared.items()}
        metrics, rollout = batch.metrics, batch.rollout
        if self.rescore:
            difference = (found["log_probs"] - rollout.log_probs).abs().mean()
            metrics = {**metrics, "mismatch/sampling": difference.item()}
        rollout = replace(rollout, log_probs=found.get("log_probs", rollout.log_probs))
        return replace(batch, rollout=rollout, reference_log_probs=found.get("reference"), metrics=metrics)

    def _ask_reference(self, drawn: Rollout) -> Float[Tensor, "B L"]:
        """Return the log-probabilities of the drawn tokens under the reference."""
        with self.engine.reference() as reference:
            return self._score(reference, drawn)

    def _score(self, policy: Policy, drawn: Rollout) -> Float[Tensor, "B L"]:
        """Return the log-probabilities of the drawn tokens, in passes of the size that updates have."""
        return score_tokens(self.engine, policy, drawn, self.scoring_size)


def part_figures(rollout: Rollout) -> dict[str, float]:
    """Return the mean entropy (nats) and the mean number of tokens of each part of the images, to log."""
    entropy = {f"entropy/{name}": mean.mean().item() for name, mean in rollout.part_means(rollout.entropy).items()}
    return {**entropy, **{f"tokens/{name}": mask.sum(1).float().mean().item() for name, mask in rollout.parts.items()}}


def score_tokens(engine: Engine, policy: Policy, drawn: Rollout, size: int) -> Float[Tensor, "B L"]:
    """Return the log-probabilities (nats) of drawn tokens under a policy of the engine, in passes of `size` images.

    In bfloat16, passes of another size than updates have run other kernels, which round differently.
    """
    with torch.no_grad(), engine.autocast():  # both are properties of a thread
        parts = [policy.log_probs(part.request, part.tokens, part.units, part.context) for part in drawn.split(size)]
    return torch.cat(parts)


@contextmanager
def scoring_pool(overlap: bool, device: torch.device) -> Iterator[Callable[..., Future[Any]]]:
    """Provide a function that runs rewards: immediately, or on a separate thread while the next images are drawn."""
    if not overlap:
        yield submit_now
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield submit_beside(pool, device)


def submit_now(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function immediately; the interface is that of an executor's `submit`."""
    done: Future[Result] = Future()
    try:
        done.set_result(function(*arguments))
    except Exception as error:  # raised again when the result is asked for
        done.set_exception(error)
    return done
