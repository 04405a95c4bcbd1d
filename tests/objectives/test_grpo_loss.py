"""The GRPO loss: by hand, and against the reference trainer's values and gradients."""

import json
import math
from typing import Any

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from sfumato.objectives import GDPO, GRPO, Credit
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.ratios import clipped_surrogate, clipped_tokens
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request

META = json.loads((GOLDEN / "grpo_meta.json").read_text())
BNPO_CASES = ("bnpo_beta0.1_old", "bnpo_beta0.1_onpolicy")


def golden_terms(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Return a case's tensors, log-probabilities with gradients, the old ones, and the mask of counted tokens."""
    golden = load_file(GOLDEN / "grpo.safetensors")
    log_probs = golden["logps"].clone().requires_grad_()
    old = golden["old_logps"] if META["cases"][name]["old_given"] else log_probs.detach()
    return golden, log_probs, old, golden["mask"].bool()


def part_of(old: Tensor, reference: Tensor | None) -> Batch:
    """Return images with these log-probabilities from sampling and from the reference."""
    count = len(old)
    rollout = Rollout(
        request=class_request([0] * count),
        tokens=torch.zeros(old.shape, dtype=torch.int64),
        log_probs=old,
        entropy=torch.zeros_like(old),
    )
    return Batch(
        rollout=rollout,
        rewards=torch.zeros(count),
        scores={"sharp": torch.zeros(count)},
        weights={"sharp": 1.0},
        group_size=count,
        reference_log_probs=reference,
    )


def loss_of(
    objective: GRPO | GDPO, log_probs: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss with one advantage per image, or one per token."""
    weights = advantages[:, None] if advantages.ndim == 1 else advantages
    return objective.loss(log_probs, part_of(old, reference), Credit(weights=weights))


@pytest.mark.parametrize("name", BNPO_CASES)
def test_mean_over_tokens_as_in_the_reference(name: str):
    golden, log_probs, old, mask = golden_terms(name)
    case = META["cases"][name]
    advantages = golden["advantages"][:, None].expand_as(mask)
    # The loss has no mask, so the counted tokens are passed to it as images of one token each.
    counted = log_probs[mask][:, None], old[mask][:, None]
    objective = GRPO(clip=case["epsilon_low"], kl_weight=case["beta"])
    loss, stats = loss_of(objective, *counted, golden["ref_logps"][mask][:, None], advantages[mask])
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert stats["kl"].item() == pytest.approx(case["metrics"]["kl"], abs=1e-6)
    assert stats["ratio_mean"].item() == pytest.approx((log_probs - old).exp()[mask].mean().item(), abs=1e-6)
    assert stats["clip_fraction"].item() == pytest.approx(case["metrics"]["clip_ratio/region_mean"], abs=1e-6)
    surrogate = clipped_surrogate(*counted, advantages[mask][:, None], case["epsilon_low"]).mean()
    assert surrogate.item() == pytest.approx(case["beta"] * stats["kl"].item() - loss.item(), abs=1e-6)
    loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, golden[f"grad_logps.{name}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [*BNPO_CASES, "grpo_beta0.04_old", "dr_grpo_beta0_old"])
def test_terms_of_each_token_as_in_the_reference(name: str):
    golden, log_probs, old, mask = golden_terms(name)
    case = META["cases"][name]
    surrogate = clipped_surrogate(log_probs, old, golden["advantages"][:, None], case["epsilon_low"])
    losses = (case["beta"] * k3_divergence(log_probs, golden["ref_logps"]) - surrogate) * mask
    loss = {
        "bnpo": losses.sum() / mask.sum(),
        "grpo": (losses.sum(1) / mask.sum(1)).mean(),
        "dr_grpo": losses.sum() / (len(losses) * case["max_completion_length"]),
    }[case["loss_type"]]
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, golden[f"grad_logps.{name}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("objective", [GRPO(clip=0.2, kl_weight=0.1), GDPO(clip=0.2, kl_weight=0.1)], ids=str)
def test_loss_is_the_mean_over_all_tokens(objective: GRPO | GDPO):
    golden = load_file(GOLDEN / "grpo.safetensors")
    log_probs, old, reference = golden["logps"], golden["old_logps"], golden["ref_logps"]
    loss, stats = loss_of(objective, log_probs, old, reference, golden["advantages"])
    total = 0.0
    for image, advantage in enumerate(golden["advantages"].tolist()):
        for token in range(log_probs.shape[1]):
            ratio = math.exp(log_probs[image, token].item() - old[image, token].item())
            difference = reference[image, token].item() - log_probs[image, token].item()
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            total += 0.1 * (math.exp(difference) - difference - 1) - surrogate
    assert loss.item() == pytest.approx(total / log_probs.numel(), abs=1e-6)
    # The reference averages only this metric over all tokens, including those that its mask leaves out.
    assert stats["ratio_mean"].item() == pytest.approx(META["cases"]["bnpo_beta0.1_old"]["metrics"]["coef_1"], abs=1e-6)


def test_clipping_by_hand():
    # Ratios 1.5, 0.5, 1.1 for a good, a bad and a neutral image.
    log_probs = torch.tensor([[1.5, 0.5, 1.1]]).log().repeat(3, 1).requires_grad_()
    old, advantages = torch.zeros(3, 3), torch.tensor([2.0, -2.0, 0.0])
    surrogate = clipped_surrogate(log_probs, old, advantages[:, None], clip=0.2)
    expected = torch.tensor([[2.4, 1.0, 2.2], [-3.0, -1.6, -2.2], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(surrogate, expected, rtol=0, atol=1e-6)
    loss, stats = loss_of(GRPO(clip=0.2, kl_weight=0.0), log_probs, old, log_probs.detach(), advantages)
    # Clipped are 1.5 for the good image and 0.5 for the bad one, i.e. two of nine tokens.
    assert stats["clip_fraction"].item() == pytest.approx(2 / 9)
    assert stats["ratio_mean"].item() == pytest.approx((1.5 + 0.5 + 1.1) / 3)
    assert stats["kl"].item() == 0.0
    loss.backward()
    assert log_probs.grad is not None
    # d ratio / d log-probability is the ratio; a clipped token has no gradient.
    gradient = -torch.tensor([[0.0, 1.0, 2.2], [-3.0, 0.0, -2.2], [0.0, 0.0, 0.0]]) / 9
    torch.testing.assert_close(log_probs.grad, gradient, rtol=0, atol=1e-6)


def test_weights_of_each_token():
    # One image with tokens of positive, negative and zero weight; each is clipped by its own weight.
    log_probs = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]]).log().requires_grad_()
    old, weights = torch.zeros(2, 3), torch.tensor([[2.0, -2.0, 0.0], [-2.0, 2.0, 1.0]])
    surrogate = clipped_surrogate(log_probs, old, weights, clip=0.2)
    torch.testing.assert_close(surrogate, torch.tensor([[2.4, -1.6, 0.0], [-3.0, 1.0, 1.1]]), rtol=0, atol=1e-6)
    cut = clipped_tokens(log_probs.exp(), weights, clip=0.2)
    assert cut.tolist() == [[True, True, False], [False, False, False]]
    loss, stats = loss_of(GRPO(clip=0.2, kl_weight=0.0), log_probs, old, None, weights)
    assert loss.item() == pytest.approx(-surrogate.mean().item())
    assert stats["clip_fraction"].item() == pytest.approx(2 / 6)
    loss.backward()
    assert log_probs.grad is not None
    gradient = -torch.tensor([[0.0, 0.0, 0.0], [-3.0, 1.0, 1.1]]) / 6
    torch.testing.assert_close(log_probs.grad, gradient, rtol=0, atol=1e-6)


def test_without_a_reference_there_is_no_kl():
    golden = load_file(GOLDEN / "grpo.safetensors")
    log_probs, old, advantages = golden["logps"], golden["old_logps"], golden["advantages"]
    loss, stats = loss_of(GRPO(kl_weight=0.0), log_probs, old, None, advantages)
    assert stats.keys() == {"ratio_mean", "clip_fraction"}
    # With a reference, the KL is reported, but does not change the loss at weight 0.
    reported, with_kl = loss_of(GRPO(kl_weight=0.0), log_probs, old, golden["ref_logps"], advantages)
    assert with_kl.keys() == {"kl", "kl_clamped", "ratio_mean", "clip_fraction"}
    assert with_kl["kl"] > 0
    torch.testing.assert_close(loss, reported, rtol=0, atol=1e-6)


def test_stats_carry_no_gradient():
    log_probs = torch.zeros(2, 3, requires_grad=True)
    _, stats = loss_of(GRPO(), log_probs, torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))
    assert stats.keys() == {"kl", "kl_clamped", "ratio_mean", "clip_fraction"}
    assert not any(figure.requires_grad for figure in stats.values())


def test_k3_is_never_negative():
    rng = torch.Generator().manual_seed(0)
    log_probs, reference = torch.randn(50, 40, generator=rng) * 3, torch.randn(50, 40, generator=rng) * 3
    assert (k3_divergence(log_probs, reference) >= 0).all()
    # exp(d) - d - 1 loses all digits for small d; the result must still be d^2 / 2.
    near = k3_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    assert near.item() == pytest.approx(1e-6 / 2, rel=2e-3)
    assert k3_divergence(log_probs, log_probs).abs().max() == 0


def test_k3_is_unbiased():
    rng = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(1, 12, generator=rng, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    kl = (policy.exp() * (policy - reference)).sum()
    # The expectation over the policy's distribution is computed exactly.
    expectation = (policy.exp() * k3_divergence(policy, reference)).sum()
    torch.testing.assert_close(expectation, kl, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("field", "value"), [("clip", 0.0), ("clip", 1.0), ("kl_weight", -0.1)])
def test_config_errors(field: str, value: float):
    options: dict[str, Any] = {field: value}
    for objective in (GRPO, GDPO):
        with bad_input(f"objective.{field}", str(value)):
            objective(**options)


def test_k3_does_not_overflow():
    log_probs = torch.tensor([[-1.0, -21.0, -100.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, -1.5, -1.0]])
    part = torch.tensor([[0.0, 19.5, 20.0]])  # log-ratios: the last of 99 is clamped
    loss, stats = loss_of(GRPO(), log_probs, log_probs.detach(), reference, torch.zeros(1))
    torch.testing.assert_close(stats["kl"], (part.expm1() - part).mean(), rtol=1e-6, atol=0)
    assert stats["kl_clamped"].item() == pytest.approx(1 / 3)
    loss.backward()
    assert log_probs.grad is not None
    expected = 0.2 / 3 * torch.tensor([0.0, 1 - math.exp(19.5), 0.0])
    torch.testing.assert_close(log_probs.grad[0], expected, rtol=1e-5, atol=1e-6)
