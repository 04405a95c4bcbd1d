"""The algorithm on a tiny generator: gradients, the reference, ratios, learning."""

import math
from pathlib import Path

import pytest
import torch
from tiny import algorithm_of, tiny_conditions, tiny_config
from torch import Tensor

from sfumato.engine.timing import PhaseTimer
from sfumato.objectives.grpo import LossConfig, grpo_loss
from sfumato.training.grpo import GRPO, Experience


def experience_of(algorithm: GRPO, count: int = 8) -> Experience:
    conditions = tiny_conditions([0, 3] * count)[: count // 4].repeat(4)
    return algorithm.collect(conditions, torch.arange(count), PhaseTimer(torch.device("cpu")))[0]


def weights_of(algorithm: GRPO) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in algorithm.parameters])


def gradient_of_update(algorithm: GRPO, experience: Experience, minibatch: Tensor) -> Tensor:
    """The gradient that the optimizer is given, before it steps."""
    seen: list[Tensor] = []

    def look(*args: object) -> None:
        seen.append(torch.cat([p.grad.flatten().clone() for p in algorithm.parameters if p.grad is not None]))

    handle = algorithm.optimizer.register_step_pre_hook(look)
    algorithm.update(experience, minibatch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8])
def test_micro_batches_change_nothing(tiny_model: Path, micro_batch_size: int):
    minibatch = torch.tensor([5, 1, 7, 0, 3, 2, 6, 4])
    gradients, stats = [], []
    for size in (8, micro_batch_size):
        algorithm = algorithm_of(tiny_config(tiny_model, minibatch_size=8, micro_batch_size=size, max_grad_norm=1e9))
        experience = experience_of(algorithm)
        gradients.append(gradient_of_update(algorithm, experience, minibatch))
        stats.append(algorithm.update(experience, minibatch))
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6)
    # The second update follows the first one's optimizer step, so its ratios and KL are not trivial.
    assert stats[0]["kl"] > 1e-5
    for name in ("kl", "ratio_mean", "clip_fraction", "grad_norm"):
        assert stats[1][name] == pytest.approx(stats[0][name], abs=1e-5), name


def test_update_follows_the_gradient_of_the_loss(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model, micro_batch_size=2, max_grad_norm=1e9))
    experience = experience_of(algorithm)
    # The second update must not see anything of the first one's gradient.
    for minibatch in (torch.tensor([6, 0, 3, 5]), torch.tensor([1, 2, 4, 7])):
        loss, _ = algorithm.loss(experience, minibatch)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, algorithm.parameters)])
        actual = gradient_of_update(algorithm, experience, minibatch)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_loss_of_some_of_the_images(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model, loss=LossConfig(clip=0.1, kl_weight=0.3), learning_rate=0.01))
    experience = experience_of(algorithm)
    algorithm.update(experience, torch.arange(8))
    index = torch.tensor([6, 0, 3])
    loss, stats = algorithm.loss(experience, index)
    rollout = experience.rollout
    conditions = tiny_conditions([int(rollout.conditions.labels[i]) for i in (6, 0, 3)])
    log_probs = algorithm.policy.log_probs(conditions, rollout.tokens[index])
    expected, _ = grpo_loss(
        log_probs,
        rollout.log_probs[index],
        algorithm.reference.log_probs(conditions, rollout.tokens[index]),
        experience.advantages[index],
        LossConfig(clip=0.1, kl_weight=0.3),
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    # None of the terms is trivial after an update.
    assert abs(stats.ratio.item() - 1) > 1e-3
    assert stats.kl.item() > 1e-4
    assert stats.clip_fraction.item() > 0


def test_gradient_is_clipped(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model, max_grad_norm=0.01))
    experience = experience_of(algorithm)
    gradient = gradient_of_update(algorithm, experience, torch.arange(4))
    assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_first_ratios_are_one_and_first_kl_is_zero(tiny_model: Path):
    for guidance in (0.0, 1.5):
        algorithm = algorithm_of(tiny_config(tiny_model, guidance=guidance))
        experience = experience_of(algorithm)
        torch.testing.assert_close(experience.reference_log_probs, experience.rollout.log_probs, rtol=0, atol=1e-5)
        stats = algorithm.update(experience, torch.arange(4))
        assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
        assert stats["kl"] == pytest.approx(0.0, abs=1e-8)
        assert stats["clip_fraction"] == 0.0


def test_collected_rewards_are_those_of_the_images(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model, sample_batch_size=3, reward={"brightness": 2.0, "dark": 1.0}))
    conditions = tiny_conditions([0, 3]).repeat(4)
    experience, metrics = algorithm.collect(conditions, torch.arange(8), PhaseTimer(torch.device("cpu")))
    images = algorithm.policy.decode(algorithm.policy.sample(conditions, torch.arange(8)).tokens)
    total, parts = algorithm.reward(images, conditions)
    assert metrics["reward_mean"] == pytest.approx(total.mean().item(), abs=1e-5)
    assert metrics["reward_std"] == pytest.approx(total.std().item(), abs=1e-5)
    assert metrics["reward/brightness"] == pytest.approx(parts["brightness"].mean().item(), abs=1e-5)
    assert metrics["reward/dark"] == pytest.approx(parts["dark"].mean().item(), abs=1e-5)
    groups = total.unflatten(0, (2, 4))
    expected = (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)
    torch.testing.assert_close(experience.advantages, expected.flatten(), rtol=0, atol=1e-3)


def test_reference_never_changes(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model))
    reference = algorithm.reference.generator.transformer
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    start = weights_of(algorithm)
    for step in range(2):
        algorithm.step(step)
    assert (weights_of(algorithm) - start).abs().max() > 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())
    learned = {id(p) for group in algorithm.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in algorithm.policy.generator.transformer.parameters()}
    assert learned.isdisjoint(id(p) for p in reference.parameters())
    assert not any(p.requires_grad for p in reference.parameters())
    assert algorithm.reference.generator is not algorithm.policy.generator
    assert algorithm.reference.temperature == algorithm.policy.temperature


def test_tokenizer_never_changes(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model))
    tokenizer = algorithm.policy.generator.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    algorithm.step(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())


def test_kl_holds_the_policy_back(tiny_model: Path):
    drift = {}
    for weight in (0.0, 5.0):
        loss = LossConfig(clip=0.2, kl_weight=weight)
        algorithm = algorithm_of(tiny_config(tiny_model, group_size=8, loss=loss, learning_rate=5e-3))
        drift[weight] = [algorithm.step(step)["kl"] for step in range(8)][-1]
    assert drift[0.0] > 4 * drift[5.0] > 0


def test_reward_rises(tiny_model: Path):
    config = tiny_config(
        tiny_model, steps=30, labels_per_step=4, group_size=8, minibatch_size=16, micro_batch_size=16,
        sample_batch_size=32, learning_rate=5e-3, loss=LossConfig(kl_weight=0.01),
    )  # fmt: skip
    algorithm = algorithm_of(config)
    rewards = [algorithm.step(step) for step in range(30)]
    first, last = (sum(m["reward_mean"] for m in part) / 5 for part in (rewards[:5], rewards[-5:]))
    spread = rewards[0]["reward_std"]
    # The mean of 160 images has a standard error of a twelfth of the spread.
    assert last - first > spread
    assert rewards[-1]["entropy"] < rewards[0]["entropy"]


def test_bfloat16_computes_but_does_not_store(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model, precision="bf16"))
    start = weights_of(algorithm)
    experience = experience_of(algorithm)
    full = algorithm_of(tiny_config(tiny_model))
    conditions, tokens = experience.rollout.conditions, experience.rollout.tokens
    exact = full.policy.log_probs(conditions, tokens)
    # Rounded to 8 bits, and yet near.
    difference = (experience.rollout.log_probs - exact).abs().max().item()
    assert 1e-5 < difference < 0.1
    metrics = algorithm.step(0)
    assert all(p.dtype == torch.float32 for p in algorithm.parameters)
    assert all(s.dtype == torch.float32 for s in algorithm.optimizer.state[algorithm.parameters[0]].values())
    assert (weights_of(algorithm) - start).abs().max() > 1e-4
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0.05)


def test_images_without_a_score_are_left_out(tiny_model: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text(
        "def shy(images, conditions):\n"
        "    scores = images.mean((1, 2, 3))\n"
        "    scores[1] = float('nan')\n"
        "    return scores\n"
    )
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:shy": 1.0}, max_unscored=0.2)
    experience, metrics = algorithm_of(config).collect(
        tiny_conditions([0, 3]).repeat(4), torch.arange(8), PhaseTimer(torch.device("cpu"))
    )
    assert experience.advantages[1] == 0
    assert metrics["unscored"] == 0.125
    torch.testing.assert_close(experience.advantages[[0, 2, 3]].std(), torch.tensor(1.0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"shy' has no score for 1 of 8 images, more than max_unscored 0\.1; mend"):
        algorithm_of(tiny_config(tiny_model, reward=config.reward)).step(0)


def test_rewards_normalised_one_by_one(tiny_model: Path):
    """With gdpo a reward's scale makes no difference; with a sum it does."""
    found = []
    for combine, scale in (("gdpo", 1), ("gdpo", 100), ("sum", 1), ("sum", 100)):
        reward = {f"brightness?scale={scale}": 1.0, "colorfulness": 1.0, "dark": 0.0}
        algorithm = algorithm_of(tiny_config(tiny_model, combine=combine, reward=reward))
        found.append(experience_of(algorithm).advantages)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)
    assert (found[3] - found[2]).abs().max() > 0.01


def test_learning_rate_follows_the_schedule(tiny_model: Path):
    config = tiny_config(tiny_model, steps=4, warmup_steps=2, learning_rate=1e-3, final_learning_rate=1e-4)
    algorithm = algorithm_of(config)
    rates = [algorithm.step(step)["learning_rate"] for step in range(4)]
    half = 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi / 2))
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, half], rel=1e-6)


def test_metrics_of_a_step(tiny_model: Path):
    metrics = algorithm_of(tiny_config(tiny_model)).step(0)
    assert {
        "reward_mean", "reward_std", "reward/brightness", "kl", "entropy", "clip_fraction", "ratio_mean", "grad_norm",
        "images_per_second", "learning_rate", "equal_groups", "seconds/sample", "seconds/decode", "seconds/reward",
        "seconds/reference", "seconds/update", "unscored", "reward_std/brightness", "reward_correlation/brightness",
    } == set(metrics)  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())
    seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
    assert metrics["images_per_second"] == pytest.approx(8 / seconds, rel=1e-6)


def test_equal_rewards_leave_only_the_kl(tiny_model: Path):
    loss = LossConfig(clip=0.2, kl_weight=0.0)
    algorithm = algorithm_of(tiny_config(tiny_model, reward={"bright": 1.0}, loss=loss))
    start = weights_of(algorithm)
    metrics = algorithm.step(0)
    assert metrics["reward_std"] == 0
    assert metrics["equal_groups"] == 1
    assert metrics["grad_norm"] == 0
    assert torch.equal(weights_of(algorithm), start)


def test_a_gradient_that_is_not_finite_is_an_error(tiny_model: Path):
    algorithm = algorithm_of(tiny_config(tiny_model))
    with torch.no_grad():
        algorithm.parameters[0].fill_(math.inf)
    experience = experience_of(algorithm_of(tiny_config(tiny_model)))
    with pytest.raises(ValueError, match="loss: the gradient is nan; lower learning_rate"):
        algorithm.update(experience, torch.arange(4))


def test_steps_are_reproducible(tiny_model: Path):
    runs = []
    for seed in (0, 0, 1):
        algorithm = algorithm_of(tiny_config(tiny_model, seed=seed))
        algorithm.step(0)
        runs.append(weights_of(algorithm))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
