"""Whole steps on a tiny generator: metrics, the schedule, learning, and the progress that hooks receive."""

import math
import re
from pathlib import Path

import pytest
import torch
from tiny import Trainer, tiny_config, trainer_of
from torch import Tensor

from sfumato.objectives import GRPO
from sfumato.training.hooks.hook import Progress
from sfumato.training.loop import learn


def weights_of(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.engine.parameters])


def test_metrics_of_a_step(tiny_model: Path):
    metrics = trainer_of(tiny_config(tiny_model)).step(0)
    assert {
        "reward_mean", "reward_std", "reward/brightness", "kl", "entropy", "clip_fraction", "ratio_mean", "grad_norm",
        "images_per_second", "learning_rate", "equal_groups", "seconds/sample", "seconds/decode", "seconds/reward",
        "seconds/reference", "seconds/update", "unscored", "reward_std/brightness", "reward_correlation/brightness",
        "mismatch/mean", "mismatch/max", "mismatch/ratio", "kl_clamped", "ratio_mean/1", "ratio_mean/2",
        "clip_fraction/1", "clip_fraction/2", "peak_memory",
    } == set(metrics)  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())
    seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
    assert metrics["images_per_second"] == pytest.approx(8 / seconds, rel=1e-6)
    assert metrics["peak_memory"] == pytest.approx(resident(), rel=0.05)


def resident() -> float:
    """Return the largest resident memory (GiB) of this process, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**20


def test_learning_rate_follows_the_schedule(tiny_model: Path):
    config = tiny_config(tiny_model, steps=4, warmup_steps=2, learning_rate=1e-3, final_learning_rate=1e-4)
    trainer, rates, used = trainer_of(config), [], []
    for step in range(4):
        rates.append(trainer.step(step)["learning_rate"])
        used.append(trainer.engine.optimizer.param_groups[0]["lr"])
    half = 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi / 2))
    assert rates == used == pytest.approx([5e-4, 1e-3, 1e-3, half], rel=1e-6)


def test_kl_holds_the_policy_back(tiny_model: Path):
    drift = {}
    for weight in (0.0, 5.0):
        objective = GRPO(clip=0.2, kl_weight=weight, report_kl=True)
        trainer = trainer_of(tiny_config(tiny_model, group_size=8, objective=objective, learning_rate=5e-3))
        drift[weight] = [trainer.step(step)["kl"] for step in range(8)][-1]
    assert drift[0.0] > 4 * drift[5.0] > 0


def test_reward_rises(tiny_model: Path):
    config = tiny_config(
        tiny_model, steps=30, groups_per_step=4, group_size=8, minibatch_size=16, micro_batch_size=16,
        sample_batch_size=32, learning_rate=5e-3, objective=GRPO(kl_weight=0.01),
    )  # fmt: skip
    trainer = trainer_of(config)
    rewards = [trainer.step(step) for step in range(30)]
    first, last = (sum(m["reward_mean"] for m in part) / 5 for part in (rewards[:5], rewards[-5:]))
    spread = rewards[0]["reward_std"]
    # The mean of 160 images has a standard error of a twelfth of the spread.
    assert last - first > spread
    assert rewards[-1]["entropy"] < rewards[0]["entropy"]


def test_equal_rewards_leave_only_the_kl(tiny_model: Path):
    objective = GRPO(clip=0.2, kl_weight=0.0)
    trainer = trainer_of(tiny_config(tiny_model, reward={"bright": 1.0}, objective=objective))
    start = weights_of(trainer)
    metrics = trainer.step(0)
    assert metrics["reward_std"] == 0
    assert metrics["equal_groups"] == 1
    assert metrics["grad_norm"] == 0
    assert torch.equal(weights_of(trainer), start)


def test_steps_are_reproducible(tiny_model: Path):
    runs = []
    for seed in (0, 0, 1):
        trainer = trainer_of(tiny_config(tiny_model, seed=seed))
        trainer.step(0)
        runs.append(weights_of(trainer))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("first", "stop_at", "finished"), [(0, None, True), (0, 2, False), (0, 4, True), (3, 2, True)])
def test_what_hooks_are_told(tiny_model: Path, first: int, stop_at: int | None, finished: bool):
    """Hooks are called before the first step or on resuming, then after every step until one of them stops the run."""
    trainer = trainer_of(tiny_config(tiny_model, steps=4))
    seen: list[Progress] = []
    order: list[str] = []

    def look(progress: Progress) -> None:
        seen.append(progress)
        order.append("look")
        progress.metrics["added"] = 1.0
        progress.stop |= progress.step == stop_at

    def then(progress: Progress) -> None:
        order.append("then")
        assert progress.metrics["added"] == 1.0

    done = learn(
        first, 4, trainer.rollouts, trainer.objective, trainer.engine, [look, then], trainer.rng, minibatch_size=4,
        learning_rate=lambda step: 1e-3,
    )  # fmt: skip
    assert done is finished
    last = stop_at if stop_at is not None and stop_at > first else 4
    assert [progress.step for progress in seen] == list(range(first, last + 1))
    assert order == ["look", "then"] * len(seen)
    assert seen[0].batch is None
    assert (seen[0].is_start, seen[0].is_resumed) == (first == 0, first > 0)
    assert not any(progress.is_start or progress.is_resumed for progress in seen[1:])
    assert all(progress.batch is not None and len(progress.batch) == 8 for progress in seen[1:])
    assert [progress.is_last for progress in seen] == [progress.step == 4 for progress in seen]
    assert [progress.due(3) for progress in seen] == [progress.step in (0, 3, 4) for progress in seen]
