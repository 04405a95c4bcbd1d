"""The bonus for entropy: the entropy of the current policy, its gradient, and what the engine passes on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from golden_data import golden_llamagen, golden_var, llamagen_request
from tiny import Trainer, tiny_config, tiny_llamagen, tiny_request, tiny_var, trainer_of
from torch import Tensor

from sfumato.families.library import save_model
from sfumato.objectives import GRPO
from sfumato.objectives.entropy_grpo import EntropyGRPO
from sfumato.policy import Policy, entropy_of
from sfumato.settings import Settings
from sfumato.testing import class_request

GUIDED, TRUNCATED = Settings(guidance=1.5, temperature=0.7), Settings(guidance=2.0, top_k=5)


@pytest.mark.parametrize(("settings", "positions"), [(GUIDED, 0), (GUIDED, 3), (TRUNCATED, 0)])
@pytest.mark.parametrize("family", ["var", "llamagen"])
@torch.no_grad()
def test_both_come_from_one_pass(family: str, settings: Settings, positions: int):
    generator, request = golden_var("a"), class_request([0, 3, 9])
    if family == "llamagen":
        generator, request = golden_llamagen("t2i", 4), llamagen_request("t2i")[torch.tensor([0, 2, 3])]
    policy = Policy(generator, settings, positions)
    rollout = policy.sample(request, torch.tensor([5, 6, 7]))
    passes = []
    handle = generator.network.register_forward_hook(lambda *_: passes.append(1))
    log_probs, entropy = policy.log_probs_and_entropy(request, rollout.tokens)
    handle.remove()
    assert len(passes) == 1
    torch.testing.assert_close(log_probs, policy.log_probs(request, rollout.tokens), rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy, policy.entropy(request, rollout.tokens), rtol=0, atol=1e-6)
    part = rollout.prefix(2)
    log_probs, first = policy.log_probs_and_entropy(request, part.tokens, part.units)
    torch.testing.assert_close(log_probs, policy.log_probs(request, part.tokens, part.units), rtol=0, atol=1e-6)
    torch.testing.assert_close(first, entropy[:, : first.shape[1]], rtol=0, atol=1e-5)


def test_gradient_of_the_entropy():
    """It is -p·(log p + H) at each logit; removed tokens have none. Double precision."""
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, 0, :2] = -torch.inf
    logits.requires_grad_()
    entropy = entropy_of(logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    p = logits.detach().softmax(-1)
    expected = -p * (p.clamp_min(1e-300).log() + entropy.detach()[..., None])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert gradient[0, 0, :2].tolist() == [0.0, 0.0]


def naive_loss(trainer: Trainer, objective: EntropyGRPO, batch: Any, credit: Any) -> Tensor:
    """Return GRPO's loss minus the bonus, from the logits of the generator, in float32."""
    policy, rollout = trainer.policy, batch.rollout
    logits = policy.generator.logits(rollout.request.inputs, rollout.tokens, policy.settings)
    probabilities = (logits / 0.7).softmax(-1)
    drawn = probabilities.gather(-1, rollout.tokens[..., None])[..., 0]
    ratio = drawn / rollout.log_probs.exp()
    surrogate = torch.minimum(ratio * credit.weights, ratio.clamp(0.8, 1.2) * credit.weights)
    difference = batch.reference_log_probs - drawn.log()
    entropy = -(probabilities * probabilities.log()).sum(-1)
    kl = difference.exp() - difference - 1
    return (objective.kl_weight * kl - surrogate - objective.entropy_weight * entropy).mean()


@pytest.mark.parametrize("family", ["var", "llamagen"])
@pytest.mark.parametrize("positions", [0, 2])
def test_the_update_follows_the_gradient_of_the_naive_formula(tmp_path: Path, family: str, positions: int):
    """In micro-batches of 4 of 8 images, float32: the gradients, of size up to 0.1, agree to 1e-6."""
    save_model(tmp_path / "model", tiny_var() if family == "var" else tiny_llamagen())
    objective = EntropyGRPO(kl_weight=0.1, entropy_weight=0.5)
    changes = {"guidance": 1.5, "logit_positions": positions, "max_grad_norm": 1e9}
    trainer = trainer_of(tiny_config(tmp_path / "model", objective=objective, **changes))
    batch, credit = trainer.collect(tiny_request([0] * 4 + [3] * 4))
    assert credit.taught is None  # images without an advantage learn the bonus too
    trainer.update(batch, credit, torch.arange(8))  # from here on the KL and the ratios are not trivial
    parameters = trainer.engine.parameters
    expected = torch.autograd.grad(naive_loss(trainer, objective, batch, credit), parameters, materialize_grads=True)
    seen: list[list[Tensor]] = []

    def look(*_: object) -> None:
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    trainer.engine.optimizer.register_step_pre_hook(look)
    trainer.update(batch, credit, torch.arange(8))
    assert max(gradient.abs().max() for gradient in expected) > 0.01
    torch.testing.assert_close(seen[0], list(expected), rtol=1e-4, atol=1e-6)


def test_the_bonus_raises_entropy(tiny_model: Path):
    entropies = {}
    for weight in (-3.0, 0.0, 3.0):
        objective = EntropyGRPO(kl_weight=0.0, entropy_weight=weight)
        trainer = trainer_of(tiny_config(tiny_model, objective=objective, learning_rate=0.02))
        entropies[weight] = [trainer.step(step)["entropy"] for step in range(3)][-1]
    assert entropies[-3.0] + 0.02 < entropies[0.0] < entropies[3.0] - 0.02


def test_without_a_bonus_it_is_grpo(tiny_model: Path):
    objectives = (GRPO(kl_weight=0.1), EntropyGRPO(kl_weight=0.1, entropy_weight=0.0))
    plain, bonus = (trainer_of(tiny_config(tiny_model, objective=objective)).step(0) for objective in objectives)
    assert plain["grad_norm"] == pytest.approx(bonus["grad_norm"], rel=1e-5)


def test_a_weight_that_is_no_number():
    with bad_input("objective.entropy_weight", "nan"):
        EntropyGRPO(entropy_weight=math.nan)
