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
from sfumato.objectives.advantages import group_advantages
from sfumato.policy import Policy
from sfumato.request import Request, join_words
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import statistics
from sfumato.rollout import Batch, Rollout, concatenate

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
    learned_units: int | None = None
    """number of first units that the objective learns from; the tokens of the others are forgotten; None for all"""

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Draw, decode and score a batch, and score its tokens with the reference if the objective needs one.

        Groups with equal rewards, which teach nothing, are drawn again up to `redraws` times (dynamic sampling, DAPO,
        arXiv 2503.14476, section 3.2).

        Raises:
            UserError: a reward failed on any process, or left too many images without a score. All processes raise it.
        """
        batch, redrawn = self._draw(self.groups, rng, timer), 0
        for _ in range(self.redraws):
            _, equal = group_advantages(batch.rewards, self.group_size)
            places = equal.nonzero()[:, 0].tolist()
            if not places:
                break
            # Rounded up so that the processes share the images equally; what is too many is dropped.
            share = self.process.count // math.gcd(self.process.count, self.group_size)
            fresh = self._draw(-(-len(places) // share) * share, rng, timer)
            batch, redrawn = self._with_groups(batch, places, fresh), redrawn + len(places)
        return replace(batch, metrics={**batch.metrics, "redrawn_groups": redrawn}) if self.redraws else batch

    def _draw(self, groups: int, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Draw and score this number of groups."""
        words = self.sampler.next(groups, rng).repeat(self.group_size)
        seeds = torch.randint(2**62, (len(words),), generator=rng)
        with self.process.together():
            request = self.engine.policy.request(words).to(self.process.device)
        return self.collect(request, seeds, timer)

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
        reference = None
        if batch.reference_log_probs is not None and fresh.reference_log_probs is not None:
            reference = merged(batch.reference_log_probs, fresh.reference_log_probs)
        return replace(
            batch,
            rollout=replace(batch.rollout, request=request, **tensors),
            rewards=merged(batch.rewards, fresh.rewards),
            scores={name: merged(scores, fresh.scores[name]) for name, scores in batch.scores.items()},
            reference_log_probs=reference,
        )

    @torch.no_grad()
    def collect(self, request: Request, seeds: Tensor, timer: PhaseTimer) -> Batch:
        """Draw and score one image per request; the images of a group are adjacent."""
        engine, process = self.engine, self.process
        policy, autocast = engine.policy, engine.autocast
        share = process.share(len(request))
        parts, scoring, reference = [], [], []
        beside = self.overlap and engine.reference_beside
        with process.together(), scoring_pool(self.overlap, process.device) as submit:
            with engine.drawing():
                for index in torch.arange(share.start, share.stop).split(self.batch_size):
                    part = request[index]
                    with timer("sample"), autocast():
                        parts.append(engine.sample(part, seeds[index]))
                    with timer("decode"), autocast():
                        images = policy.decode(parts[-1].tokens).float()
                    if self.learned_units:
                        parts[-1] = parts[-1].prefix(self.learned_units)
                    # After a failure only scoring ends: drawing may need all processes.
                    if not any(scored.done() and scored.exception() for scored in scoring):
                        with timer("reward"):
                            scoring.append(submit(self.reward, images, part.words))
                    if beside and self.needs_reference:
                        reference.append(submit(self._ask_reference, parts[-1]))
            drawn = concatenate(parts, request[share])
            if self.needs_reference and not beside:
                with timer("reference"):
                    reference.append(submit_now(self._ask_reference, drawn))
            log_probs = drawn.log_probs
            if self.rescore or engine.scorer.settings != policy.settings:
                with timer("reference"):
                    log_probs = self._score(engine.scorer, drawn)
            with timer("reward"):
                part_scores = [scored.result()[1] for scored in scoring]
            reference_log_probs = [scored.result() for scored in reference]
        mismatch = {}
        if self.rescore:
            difference = process.gather((log_probs - drawn.log_probs).abs().mean()[None]).mean()
            mismatch = {"mismatch/sampling": difference.item()}
        rollout = process.gather_rollout(replace(drawn, log_probs=log_probs), request)
        scores = {name: process.gather(torch.cat([s[name] for s in part_scores])) for name in self.reward.parts}
        self.reward.check_scored(scores, self.max_unscored)
        rewards = self.reward.total(scores)
        return Batch(
            rollout=rollout,
            rewards=rewards,
            scores=scores,
            weights={name: part.weight for name, part in self.reward.parts.items()},
            group_size=self.group_size,
            reference_log_probs=process.gather(torch.cat(reference_log_probs)) if reference else None,
            metrics={**statistics(rewards, scores), "entropy": rollout.entropy.mean().item(), **mismatch},
        )

    def _ask_reference(self, drawn: Rollout) -> Float[Tensor, "B L"]:
        """Return the log-probabilities of the drawn tokens under the reference."""
        with self.engine.reference() as reference:
            return self._score(reference, drawn)

    def _score(self, policy: Policy, drawn: Rollout) -> Float[Tensor, "B L"]:
        """Return the log-probabilities of the drawn tokens, in passes of the size that updates have.

        In bfloat16, other sizes run other kernels, which round differently.
        """
        with torch.no_grad(), self.engine.autocast():  # both are properties of a thread
            parts = [policy.log_probs(part.request, part.tokens, part.units) for part in drawn.split(self.scoring_size)]
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
