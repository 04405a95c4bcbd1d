"""Rollouts that the training processes draw themselves, between updates."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.data.classes import WordsSampler
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.request import Request
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import statistics
from sfumato.rollout import Batch, concatenate

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
    overlap: bool = False
    """whether to score one part while the next is drawn"""

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Draw, decode and score a batch, and score its tokens with the reference if the objective needs one.

        Raises:
            RewardError: a reward failed, or left too many images without a score.
        """
        words = self.sampler.next(self.groups, rng).repeat(self.group_size)
        seeds = torch.randint(2**62, (len(words),), generator=rng)
        return self.collect(self.engine.policy.request(words).to(self.process.device), seeds, timer)

    @torch.no_grad()
    def collect(self, request: Request, seeds: Tensor, timer: PhaseTimer) -> Batch:
        """Draw and score one image per request; the images of a group are adjacent."""
        policy, scorer, process = self.engine.policy, self.engine.scorer, self.process
        autocast = self.engine.autocast
        share = process.share(len(request))
        parts, scoring, reference = [], [], []
        with scoring_pool(self.overlap) as submit:
            for index in torch.arange(share.start, share.stop).split(self.batch_size):
                part = request[index]
                with timer("sample"), autocast():
                    parts.append(policy.sample(part, seeds[index]))
                with timer("decode"), autocast():
                    images = policy.decode(parts[-1].tokens).float()
                with timer("reward"):
                    scoring.append(submit(self.reward, images, part.words))
                if scorer is not policy:  # the ratios need the scorer's own log-probabilities
                    with timer("reference"), autocast():
                        parts[-1] = replace(parts[-1], log_probs=scorer.log_probs(part, parts[-1].tokens))
                if self.needs_reference:
                    with timer("reference"), autocast(), self.engine.reference() as policy_before:
                        reference.append(policy_before.log_probs(part, parts[-1].tokens))
            with timer("reward"):
                part_scores = [scored.result()[1] for scored in scoring]
        rollout = process.gather_rollout(concatenate(parts, request[share]), request)
        scores = {name: process.gather(torch.cat([s[name] for s in part_scores])) for name in self.reward.parts}
        self.reward.check_scored(scores, self.max_unscored)
        rewards = self.reward.total(scores)
        return Batch(
            rollout=rollout,
            rewards=rewards,
            scores=scores,
            weights={name: part.weight for name, part in self.reward.parts.items()},
            group_size=self.group_size,
            reference_log_probs=process.gather(torch.cat(reference)) if reference else None,
            metrics={**statistics(rewards, scores), "entropy": rollout.entropy.mean().item()},
        )


@contextmanager
def scoring_pool(overlap: bool) -> Iterator[Callable[..., Future[Any]]]:
    """Provide a function that runs rewards: immediately, or on a separate thread while the next images are drawn."""
    if not overlap:
        yield submit_now
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit


def submit_now(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function immediately; the interface is that of an executor's `submit`."""
    done: Future[Result] = Future()
    done.set_result(function(*arguments))
    return done
