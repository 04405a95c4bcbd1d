"""GRPO for image generators (Gallici & Sáez de Ocáriz Borde, 2025): the whole algorithm, top to bottom."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.data.classes import ConditionSampler
from sfumato.engine.process import Workers
from sfumato.engine.schedule import cosine_schedule
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import UserError
from sfumato.objectives.advantages import decoupled_advantages, group_advantages
from sfumato.objectives.grpo import LossStats, grpo_loss
from sfumato.policy import Generator, Policy, with_guidance, with_transformer
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import statistics
from sfumato.rollout import Conditions, Rollout, concatenate
from sfumato.training.config import GRPOConfig

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What one step learns from: images as tokens, how good they are, and what the reference makes of them."""

    rollout: Rollout
    advantages: Float[Tensor, " B"]
    reference_log_probs: Float[Tensor, "B L"]


class GRPO:
    """The policy, its frozen reference and the optimizer. `step` is the algorithm; `state` is all that resumes."""

    def __init__(
        self, config: GRPOConfig, policy: Policy, sampler: ConditionSampler, reward: WeightedSum, workers: Workers
    ):
        self.config, self.policy, self.sampler, self.reward, self.workers = config, policy, sampler, reward, workers
        self.submit = ThreadPoolExecutor(max_workers=1).submit if config.overlap_rewards else submit_now
        self.rng = torch.Generator().manual_seed(config.seed)
        self.parameters = list(policy.generator.transformer.parameters())
        self.scorer = scoring_policy(policy, config.score_guidance)
        self.reference = Policy(frozen_copy(self.scorer.generator), policy.temperature)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )
        self.schedule = cosine_schedule(
            config.steps, config.warmup_steps, floor=config.final_learning_rate / config.learning_rate
        )

    def step(self, step: int) -> dict[str, float]:
        """Draw, score, compare, learn. Returns the step's metrics."""
        config, timer = self.config, PhaseTimer(self.workers.device)
        conditions = self.sampler.next(config.labels_per_step, self.rng).repeat(config.group_size)
        seeds = torch.randint(2**62, (len(conditions),), generator=self.rng)
        experience, metrics = self.collect(conditions.to(self.workers.device), seeds, timer)

        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self.schedule(step)
        order = torch.randperm(len(conditions), generator=self.rng)
        with timer("update"):
            updates = [self.update(experience, minibatch) for minibatch in order.split(config.minibatch_size)]
        for name in updates[0]:
            metrics[name] = sum(update[name] for update in updates) / len(updates)
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        metrics["images_per_second"] = len(conditions) / timer.total()
        return metrics | {f"seconds/{phase}": seconds for phase, seconds in timer.seconds.items()}

    @torch.no_grad()
    def collect(
        self, conditions: Conditions, seeds: Int[Tensor, " B"], timer: PhaseTimer
    ) -> tuple[Experience, dict[str, float]]:
        """Draw one image a condition, decode, score, and ask the reference; every worker does its share."""
        config, share = self.config, self.workers.share(len(conditions))
        parts, scoring, reference = [], [], []
        for index in torch.arange(share.start, share.stop).split(config.sample_batch_size):
            part = conditions[index]
            with timer("sample"), self.autocast():
                parts.append(self.policy.sample(part, seeds[index]))
            with timer("decode"), self.autocast():
                images = self.policy.decode(parts[-1].tokens).float()
            with timer("reward"):
                scoring.append(self.submit(self.reward, images, part))
            with timer("reference"), self.autocast():
                if self.scorer is not self.policy:
                    parts[-1] = replace(parts[-1], log_probs=self.scorer.log_probs(part, parts[-1].tokens))
                reference.append(self.reference.log_probs(part, parts[-1].tokens))
        rollout = self.workers.gather_rollout(concatenate(parts, conditions[share]), conditions)
        with timer("reward"):
            part_scores = [scored.result()[1] for scored in scoring]
        scores = {name: self.workers.gather(torch.cat([s[name] for s in part_scores])) for name in self.reward.parts}
        self.reward.check_scored(scores, config.max_unscored)
        total = self.reward.total(scores)
        advantages, equal = self.advantages(total, scores)
        metrics = statistics(total, scores)
        metrics |= {"equal_groups": equal.float().mean().item(), "entropy": rollout.entropy.mean().item()}
        reference_log_probs = self.workers.gather(torch.cat(reference))
        return Experience(rollout=rollout, advantages=advantages, reference_log_probs=reference_log_probs), metrics

    def advantages(
        self, total: Float[Tensor, " B"], scores: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " B"], Bool[Tensor, " N"]]:
        """How much better each image is than the others of its group, and which groups are all equal."""
        if self.config.combine == "sum":
            return group_advantages(total, self.config.group_size)
        counted = [name for name, part in self.reward.parts.items() if part.weight]
        weights = total.new_tensor([self.reward.parts[name].weight for name in counted])
        return decoupled_advantages(torch.stack([scores[n] for n in counted]), weights, self.config.group_size)

    def update(self, experience: Experience, minibatch: Int[Tensor, " M"]) -> dict[str, float]:
        """One optimizer update on these images, in micro-batches; returns means over the minibatch."""
        config = self.config
        device, mine = self.workers.device, minibatch[self.workers.rank :: self.workers.count]
        totals = torch.zeros(3, device=device)
        for index in mine.to(device).split(config.micro_batch_size):
            loss, stats = self.loss(experience, index)
            share = len(index) / len(minibatch)
            (loss * share).backward()
            totals += share * torch.stack([stats.kl, stats.ratio, stats.clip_fraction])
        self.workers.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        if not norm.isfinite():
            raise UserError(f"loss: the gradient is {norm.item()}; lower learning_rate or raise temperature")
        self.optimizer.step()
        self.optimizer.zero_grad()
        kl, ratio, clip_fraction = self.workers.gather(totals[None]).sum(0).tolist()
        return {"kl": kl, "ratio_mean": ratio, "clip_fraction": clip_fraction, "grad_norm": norm.item()}

    def loss(self, experience: Experience, index: Int[Tensor, " m"]) -> tuple[Float[Tensor, ""], LossStats]:
        """The GRPO loss of some of the images."""
        rollout = experience.rollout[index]
        with self.autocast():
            log_probs = self.scorer.log_probs(rollout.conditions, rollout.tokens)
        return grpo_loss(
            log_probs,
            rollout.log_probs,
            experience.reference_log_probs[index],
            experience.advantages[index],
            self.config.loss,
        )

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic if the config asks for it; weights stay float32."""
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def state(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "rng": self.rng.get_state()}

    def load_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])


def scoring_policy(policy: Policy, guidance: float | None) -> Policy:
    """The policy whose ratios and KL are taken: the sampled one itself, or at another guidance (an ablation)."""
    if guidance is None or guidance == policy.generator.guidance:
        return policy
    return Policy(with_guidance(policy.generator, guidance), policy.temperature)


def submit_now(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """What an executor's `submit` does, at once."""
    done: Future[Result] = Future()
    done.set_result(function(*arguments))
    return done


def frozen_copy(generator: Generator) -> Generator:
    """The generator as it is now, without gradients; only its transformer is copied, the rest is shared."""
    return with_transformer(generator, copy.deepcopy(generator.transformer).requires_grad_(False).eval())
