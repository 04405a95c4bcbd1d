"""Batches of a step: rewards of the images, credit, images without a score, scoring in parallel with sampling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from tiny import tiny_config, tiny_request, trainer_of
from torch import Tensor

from sfumato.engine.timing import PhaseTimer
from sfumato.objectives import GDPO, GRPO
from sfumato.objectives.advantages import group_advantages, max_variance_subset
from sfumato.policy import Policy
from sfumato.request import Request
from sfumato.rollout import Batch

REQUEST = tiny_request([0, 3]).repeat(4)


def test_collected_rewards_are_those_of_the_images(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, sample_batch_size=3, reward={"brightness": 2.0, "dark": 1.0}))
    batch, credit = trainer.collect(REQUEST)
    images = trainer.policy.decode(trainer.policy.sample(REQUEST, torch.arange(8)).tokens)
    total, parts = trainer.rollouts.reward(images, REQUEST.words)
    assert batch.metrics["reward_mean"] == pytest.approx(total.mean().item(), abs=1e-5)
    assert batch.metrics["reward_std"] == pytest.approx(total.std().item(), abs=1e-5)
    assert batch.metrics["reward/brightness"] == pytest.approx(parts["brightness"].mean().item(), abs=1e-5)
    assert batch.metrics["reward/dark"] == pytest.approx(parts["dark"].mean().item(), abs=1e-5)
    torch.testing.assert_close(batch.rewards, total, rtol=0, atol=1e-5)
    assert batch.scores.keys() == parts.keys()
    for name, scores in parts.items():
        torch.testing.assert_close(batch.scores[name], scores, rtol=0, atol=1e-5)
    assert batch.weights == {"brightness": 2.0, "dark": 1.0}
    assert batch.group_size == 4
    groups = total.unflatten(0, (2, 4))
    expected = (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)
    torch.testing.assert_close(credit.weights, expected.flatten()[:, None], rtol=0, atol=1e-3)


def test_images_without_a_score_are_left_out(tiny_model: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text(
        "def shy(images, words):\n"
        "    scores = images.mean((1, 2, 3))\n"
        "    scores[1] = float('nan')\n"
        "    return scores\n"
    )
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:shy": 1.0}, max_unscored=0.2)
    batch, credit = trainer_of(config).collect(REQUEST)
    assert credit.weights[1] == 0
    assert batch.metrics["unscored"] == 0.125
    torch.testing.assert_close(credit.weights[[0, 2, 3]].std(), torch.tensor(1.0), rtol=0, atol=1e-5)
    with bad_input("step", "step 1:", "shy", "1 of 8", "0.1", "max_unscored"):
        trainer_of(tiny_config(tiny_model, reward=config.reward)).step(0)
    with bad_input("reward", "shy", "1 of 8"):
        trainer_of(tiny_config(tiny_model, reward=config.reward)).collect(REQUEST)


def test_rewards_normalized_one_by_one(tiny_model: Path):
    """With GDPO, the scale of a reward makes no difference; with a sum, it does."""
    weights = []
    for objective in (GDPO(), GRPO()):
        for scale in (1, 100):
            reward = {f"brightness?scale={scale}": 1.0, "colorfulness": 1.0, "dark": 0.0}
            trainer = trainer_of(tiny_config(tiny_model, objective=objective, reward=reward))
            weights.append(trainer.collect(REQUEST)[1].weights)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
    assert (weights[3] - weights[2]).abs().max() > 0.01


def test_scoring_beside_sampling_changes_nothing(tiny_model: Path):
    results = []
    for overlap in (False, True):
        reward = {"brightness": 1.0, "colorfulness": 2.0}
        trainer = trainer_of(tiny_config(tiny_model, overlap_rewards=overlap, sample_batch_size=2, reward=reward))
        batch, credit = trainer.collect(REQUEST)
        results.append((credit.weights.tolist(), batch.metrics, credit.metrics))
    assert results[0] == results[1]


def test_a_reward_that_fails_beside_sampling_is_named(tiny_model: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text("def broken(images, words):\n    raise OSError('no route')\n")
    config = tiny_config(tiny_model, overlap_rewards=True, reward={f"{tmp_path}/r.py:broken": 1.0})
    with bad_input("reward", "r.py:broken", "no route"):
        trainer_of(config).collect(REQUEST)


DULL = """
def dull(images, words):
    scores = images.mean((1, 2, 3))
    return scores.where(words.labels.to(scores.device) > 2, 0.5)  # of the first three classes, all score alike
"""


def test_equal_groups_are_drawn_again(tiny_model: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text(DULL)
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:dull": 1.0}, groups_per_step=6, minibatch_size=24)
    batches = {}
    for redraws in (0, 1, 20):
        trainer = trainer_of(replace(config, redraws=redraws))
        batches[redraws] = trainer.rollouts.next(torch.Generator().manual_seed(0), PhaseTimer(torch.device("cpu")))
    equal = {count: group_advantages(batch.rewards, 4)[1] for count, batch in batches.items()}
    assert equal[0].sum() > equal[1].sum() > equal[20].sum() == 0
    first, last = batches[0], batches[20]
    kept = ~equal[0].repeat_interleave(4)
    assert torch.equal(last.rollout.tokens[kept], first.rollout.tokens[kept])
    assert last.metrics["redrawn_groups"] >= equal[0].sum() > 0
    assert batches[1].metrics["redrawn_groups"] == equal[0].sum()
    assert "redrawn_groups" not in first.metrics
    assert last.metrics["reward_mean"] == first.metrics["reward_mean"]  # of what the policy draws
    # Words, tokens, rewards and log-probabilities belong together.
    policy, request = trainer.policy, last.rollout.request
    log_probs = policy.log_probs(request, last.rollout.tokens)
    torch.testing.assert_close(log_probs, last.rollout.log_probs, rtol=0, atol=1e-4)
    assert last.reference_log_probs is not None
    torch.testing.assert_close(log_probs, last.reference_log_probs, rtol=0, atol=1e-4)  # before the first update
    total, _ = trainer.rollouts.reward(policy.decode(last.rollout.tokens), request.words)
    torch.testing.assert_close(total, last.rewards, rtol=0, atol=1e-5)
    assert all(len(set(group)) == 1 for group in request.words.labels.unflatten(0, (-1, 4)).tolist())


def test_the_candidates_that_differ_most_are_learned_from(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    def batch_of(**changes: Any) -> Batch:
        config = tiny_config(tiny_model, sample_batch_size=5, recompute_log_probs=True, **changes)
        return trainer_of(config).rollouts.next(torch.Generator().manual_seed(0), PhaseTimer(torch.device("cpu")))

    every, asked, score = batch_of(group_size=6), [], Policy.log_probs

    def counted(self: Policy, request: Request, tokens: Tensor, *rest: Any) -> Tensor:
        asked.append(len(tokens))
        return score(self, request, tokens, *rest)

    monkeypatch.setattr(Policy, "log_probs", counted)
    batch = batch_of(candidates=6)
    # Once by the reference, and once to replace the log-probabilities of drawing.
    assert sum(asked) == 2 * 8
    chosen = torch.cat([6 * number + max_variance_subset(every.rewards[6 * number :][:6], 4) for number in range(2)])
    assert batch.group_size == 4
    assert torch.equal(batch.rollout.tokens, every.rollout.tokens[chosen])
    assert torch.equal(batch.rewards, every.rewards[chosen])
    assert torch.equal(batch.scores["brightness"], every.scores["brightness"][chosen])
    assert batch.rollout.request.words.names == every.rollout.request.words[chosen].names
    for mine, whole in (
        (batch.reference_log_probs, every.reference_log_probs),
        (batch.rollout.log_probs, every.rollout.log_probs),
    ):
        assert mine is not None
        assert whole is not None
        torch.testing.assert_close(mine, whole[chosen], rtol=0, atol=1e-5)
    assert batch.metrics["reward_mean"] == every.metrics["reward_mean"]  # of all candidates
    assert batch.metrics["entropy"] == every.metrics["entropy"]
    assert torch.equal(batch_of(candidates=6, overlap_rewards=True).rollout.tokens, batch.rollout.tokens)


def test_candidates_of_groups_that_are_drawn_again(tiny_model: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text(DULL)
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:dull": 1.0}, candidates=6, redraws=20)
    trainer = trainer_of(replace(config, objective=GRPO(kl_weight=0.1)))
    batch = trainer.rollouts.next(torch.Generator().manual_seed(1), PhaseTimer(torch.device("cpu")))
    assert batch.metrics["redrawn_groups"] > 0
    assert not group_advantages(batch.rewards, 4)[1].any()
    policy, rollout = trainer.policy, batch.rollout
    log_probs = policy.log_probs(rollout.request, rollout.tokens)
    assert batch.reference_log_probs is not None
    torch.testing.assert_close(log_probs, batch.reference_log_probs, rtol=0, atol=1e-4)
    total, _ = trainer.rollouts.reward(policy.decode(rollout.tokens), rollout.request.words)
    torch.testing.assert_close(total, batch.rewards, rtol=0, atol=1e-5)
