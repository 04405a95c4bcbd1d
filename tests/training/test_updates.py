"""Updates of the engine: gradients, micro-batches, the reference, precision."""

import math
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import Trainer, tiny_config, tiny_request, trainer_of
from torch import Tensor

from sfumato.objectives import GDPO, GRPO, Credit
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.ratios import clipped_surrogate
from sfumato.policy import Policy
from sfumato.rollout import Batch


def collected(trainer: Trainer, count: int = 8) -> tuple[Batch, Credit]:
    return trainer.collect(tiny_request([0, 3] * count)[: count // 4].repeat(4))


def weights_of(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.engine.parameters])


def gradient_of_update(trainer: Trainer, batch: Batch, credit: Credit, minibatch: Tensor) -> Tensor:
    """Return the gradient that the optimizer receives, before it steps."""
    seen: list[Tensor] = []

    def look(*args: object) -> None:
        seen.append(torch.cat([p.grad.flatten().clone() for p in trainer.engine.parameters if p.grad is not None]))

    handle = trainer.engine.optimizer.register_step_pre_hook(look)
    trainer.update(batch, credit, minibatch)
    handle.remove()
    return seen[0]


def loss_of(trainer: Trainer, batch: Batch, credit: Credit, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the objective's loss on some of the images, with gradients."""
    part = batch[index]
    log_probs = trainer.engine.scorer.log_probs(part.rollout.request, part.rollout.tokens)
    return trainer.objective.loss(log_probs, part, credit[index])


def reference_of(trainer: Trainer) -> Policy:
    with trainer.engine.reference() as reference:
        return reference


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8])
def test_micro_batches_change_nothing(tiny_model: Path, micro_batch_size: int):
    minibatch = torch.tensor([5, 1, 7, 0, 3, 2, 6, 4])
    gradients, stats = [], []
    for size in (8, micro_batch_size):
        trainer = trainer_of(tiny_config(tiny_model, minibatch_size=8, micro_batch_size=size, max_grad_norm=1e9))
        batch, credit = collected(trainer)
        gradients.append(gradient_of_update(trainer, batch, credit, minibatch))
        stats.append(trainer.update(batch, credit, minibatch))
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6)
    # The second update follows the first one's optimizer step, so its ratios and KL are not trivial.
    assert stats[0]["kl"] > 1e-5
    for name in ("kl", "ratio_mean", "clip_fraction", "grad_norm"):
        assert stats[1][name] == pytest.approx(stats[0][name], abs=1e-5), name


def test_update_follows_the_gradient_of_the_loss(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, micro_batch_size=2, max_grad_norm=1e9))
    batch, credit = collected(trainer)
    # The gradient of the first update must not affect the second.
    for minibatch in (torch.tensor([6, 0, 3, 5]), torch.tensor([1, 2, 4, 7])):
        loss, _ = loss_of(trainer, batch, credit, minibatch)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer.engine.parameters)])
        actual = gradient_of_update(trainer, batch, credit, minibatch)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_loss_of_some_of_the_images(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, objective=GRPO(clip=0.1, kl_weight=0.3), learning_rate=0.01))
    batch, credit = collected(trainer)
    trainer.update(batch, credit, torch.arange(8))
    index = torch.tensor([6, 0, 3])
    loss, stats = loss_of(trainer, batch, credit, index)
    rollout = batch.rollout
    request = tiny_request([int(rollout.request.words.labels[i]) for i in (6, 0, 3)])
    log_probs = trainer.policy.log_probs(request, rollout.tokens[index])
    surrogate = clipped_surrogate(log_probs, rollout.log_probs[index], credit.weights[index], 0.1)
    reference = reference_of(trainer).log_probs(request, rollout.tokens[index])
    expected = (0.3 * k3_divergence(log_probs, reference) - surrogate).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    # None of the terms is trivial after an update.
    assert abs(stats["ratio_mean"].item() - 1) > 1e-3
    assert stats["kl"].item() > 1e-4
    assert stats["clip_fraction"].item() > 0


def test_several_minibatches_are_several_updates(tiny_model: Path):
    config = tiny_config(tiny_model)
    one, other = trainer_of(config), trainer_of(config)
    batch, credit = collected(one)
    minibatches = torch.tensor([5, 1, 7, 0, 3, 2, 6, 4]).split(4)
    stats = one.engine.update(one.objective.loss, batch, credit, minibatches, 1e-3)
    each = [other.update(batch, credit, minibatch) for minibatch in minibatches]
    assert torch.equal(weights_of(one), weights_of(other))
    for name, value in stats.items():
        metric, _, position = name.partition("/")
        first, second = each[0].get(name), each[1].get(name)
        if metric in ("ratio_mean", "clip_fraction") and position:
            expected = each[int(position) - 1][metric]
        else:
            assert first is not None
            assert second is not None
            expected = first if metric == "mismatch" else (first + second) / 2
        assert value == pytest.approx(expected, rel=1e-6), name
    assert stats["ratio_mean/1"] == pytest.approx(1.0, abs=1e-6)
    assert abs(stats["ratio_mean/2"] - 1) > 1e-4


def test_gradient_is_clipped(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, max_grad_norm=0.01))
    gradient = gradient_of_update(trainer, *collected(trainer), torch.arange(4))
    assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_first_ratios_are_one_and_first_kl_is_zero(tiny_model: Path):
    for guidance in (None, 1.5):
        trainer = trainer_of(tiny_config(tiny_model, guidance=guidance))
        batch, credit = collected(trainer)
        assert batch.reference_log_probs is not None
        torch.testing.assert_close(batch.reference_log_probs, batch.rollout.log_probs, rtol=0, atol=1e-5)
        stats = trainer.update(batch, credit, torch.arange(4))
        assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
        assert stats["kl"] == pytest.approx(0.0, abs=1e-8)
        assert stats["clip_fraction"] == 0.0


def test_mismatch_is_that_of_the_first_minibatch(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, learning_rate=0.05))
    batch, credit = collected(trainer)
    first, second = torch.tensor([0, 3, 5, 6]), torch.tensor([1, 2, 4, 7])
    stats = trainer.engine.update(trainer.objective.loss, batch, credit, [first, second], 0.05)
    assert stats["mismatch/mean"] <= stats["mismatch/max"] < 1e-5
    assert stats["mismatch/ratio"] == pytest.approx(1.0, abs=1e-5)
    # The policy has changed since: the rollout's log-probabilities are of another one now.
    part = batch[first]
    with torch.no_grad():
        log_probs = trainer.policy.log_probs(part.rollout.request, part.rollout.tokens)
    change = log_probs - part.rollout.log_probs
    assert change.abs().mean() > 0.01
    stats = trainer.update(batch, credit, first)
    assert stats["mismatch/mean"] == pytest.approx(change.abs().mean().item(), rel=1e-4)
    assert stats["mismatch/max"] == pytest.approx(change.abs().max().item(), rel=1e-4)
    assert stats["mismatch/ratio"] == pytest.approx(change.exp().mean().item(), rel=1e-4)


def test_reference_never_changes(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model))
    reference = reference_of(trainer)
    network = reference.generator.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = weights_of(trainer)
    for step in range(2):
        trainer.step(step)
    assert (weights_of(trainer) - start).abs().max() > 1e-4
    assert reference_of(trainer).generator.network is network
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    learned = {id(p) for group in trainer.engine.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in trainer.policy.generator.network.parameters()}
    assert learned.isdisjoint(id(p) for p in network.parameters())
    assert not any(p.requires_grad for p in network.parameters())
    assert reference.generator is not trainer.policy.generator
    assert reference.generator.tokenizer is trainer.policy.generator.tokenizer
    assert reference.settings == trainer.policy.settings


@pytest.mark.parametrize("objective", [GRPO(kl_weight=0.0), GDPO(kl_weight=0.0)])
def test_without_kl_there_is_no_reference(tiny_model: Path, objective: GRPO | GDPO):
    trainer = trainer_of(tiny_config(tiny_model, objective=objective))
    assert not objective.needs_reference
    with pytest.raises(RuntimeError, match="reference"), trainer.engine.reference():
        pass
    batch, _ = collected(trainer)
    assert batch.reference_log_probs is None
    metrics = trainer.step(0)
    assert "kl" not in metrics
    assert "seconds/reference" not in metrics
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0.1)
    assert metrics["grad_norm"] > 0


def test_a_kl_of_no_weight_is_logged_on_request(tiny_model: Path):
    """Logging the KL changes nothing: the weights are those of a run without a reference."""
    learned, kl = [], []
    for report_kl in (False, True):
        trainer = trainer_of(tiny_config(tiny_model, objective=GRPO(kl_weight=0.0, report_kl=report_kl)))
        steps = [trainer.step(step) for step in range(2)]
        kl += [metrics["kl"] for metrics in steps if "kl" in metrics]
        learned.append(weights_of(trainer))
    assert len(kl) == 2
    assert kl[1] > kl[0] > 0
    assert reference_of(trainer).generator is not trainer.policy.generator
    torch.testing.assert_close(learned[1], learned[0], rtol=0, atol=1e-7)


def test_tokenizer_never_changes(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model))
    tokenizer = trainer.policy.generator.tokenizer
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    trainer.step(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())


def test_bfloat16_computes_but_does_not_store(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model, precision="bf16"))
    start = weights_of(trainer)
    batch, _ = collected(trainer)
    full = trainer_of(tiny_config(tiny_model))
    exact = full.policy.log_probs(batch.rollout.request, batch.rollout.tokens)
    # Rounded to 8 bits, but still close.
    difference = (batch.rollout.log_probs - exact).abs().max().item()
    assert 1e-5 < difference < 0.1
    metrics = trainer.step(0)
    engine = trainer.engine
    assert all(p.dtype == torch.float32 for p in engine.parameters)
    assert all(s.dtype == torch.float32 for s in engine.optimizer.state[engine.parameters[0]].values())
    assert all(tensor.dtype == torch.float32 for tensor in engine.weights().values())
    assert (weights_of(trainer) - start).abs().max() > 1e-4
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0.05)


def test_a_gradient_that_is_not_finite_is_an_error(tiny_model: Path):
    trainer = trainer_of(tiny_config(tiny_model))
    with torch.no_grad():
        trainer.engine.parameters[0].fill_(math.inf)
    start = weights_of(trainer)
    batch, credit = collected(trainer_of(tiny_config(tiny_model)))
    with bad_input("learning_rate", "0.001", "nan"):
        trainer.update(batch, credit, torch.arange(4))
    assert torch.equal(weights_of(trainer), start)


def test_an_engine_takes_up_what_it_has_saved(tiny_model: Path, tmp_path: Path):
    one, other = trainer_of(tiny_config(tiny_model)), trainer_of(tiny_config(tiny_model))
    batch, credit = collected(one)
    one.update(batch, credit, torch.arange(8))
    one.engine.save(tmp_path / "saved")()
    other.engine.load(tmp_path / "saved")
    assert all(torch.equal(tensor, one.engine.weights()[name]) for name, tensor in other.engine.weights().items())
    for trainer in (one, other):  # the optimizer's moments are the same too
        trainer.update(batch, credit, torch.arange(8))
    assert torch.equal(weights_of(one), weights_of(other))
