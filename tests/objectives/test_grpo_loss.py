"""The GRPO loss: by hand, and against the reference trainer's values and gradients."""

import json
import math

import pytest
import torch
from golden_data import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from sfumato.objectives.grpo import LossConfig, clipped_surrogate, grpo_loss, k3_divergence

META = json.loads((GOLDEN / "grpo_meta.json").read_text())
BNPO_CASES = ("bnpo_beta0.1_old", "bnpo_beta0.1_onpolicy")


def golden_terms(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """A case's tensors, log-probabilities that ask for gradients, the old ones, and the mask of counted tokens."""
    golden = load_file(GOLDEN / "grpo.safetensors")
    log_probs = golden["logps"].clone().requires_grad_()
    old = golden["old_logps"] if META["cases"][name]["old_given"] else log_probs.detach()
    return golden, log_probs, old, golden["mask"].bool()


@pytest.mark.parametrize("name", BNPO_CASES)
def test_mean_over_tokens_as_in_the_reference(name: str):
    golden, log_probs, old, mask = golden_terms(name)
    case = META["cases"][name]
    advantages = golden["advantages"][:, None].expand_as(mask)
    # There is no mask in `grpo_loss`: the counted tokens are given to it as images of one token each.
    loss, stats = grpo_loss(
        log_probs[mask][:, None],
        old[mask][:, None],
        golden["ref_logps"][mask][:, None],
        advantages[mask],
        LossConfig(clip=case["epsilon_low"], kl_weight=case["beta"]),
    )
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert stats.kl.item() == pytest.approx(case["metrics"]["kl"], abs=1e-6)
    assert stats.ratio.item() == pytest.approx((log_probs - old).exp()[mask].mean().item(), abs=1e-6)
    assert stats.clip_fraction.item() == pytest.approx(case["metrics"]["clip_ratio/region_mean"], abs=1e-6)
    assert stats.surrogate.item() == pytest.approx(case["beta"] * stats.kl.item() - loss.item(), abs=1e-6)
    loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, golden[f"grad_logps.{name}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [*BNPO_CASES, "grpo_beta0.04_old", "dr_grpo_beta0_old"])
def test_terms_of_each_token_as_in_the_reference(name: str):
    golden, log_probs, old, mask = golden_terms(name)
    case = META["cases"][name]
    surrogate = clipped_surrogate(log_probs, old, golden["advantages"], case["epsilon_low"])
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


def test_loss_is_the_mean_over_all_tokens():
    golden = load_file(GOLDEN / "grpo.safetensors")
    log_probs, old, reference = golden["logps"], golden["old_logps"], golden["ref_logps"]
    loss, stats = grpo_loss(log_probs, old, reference, golden["advantages"], LossConfig(clip=0.2, kl_weight=0.1))
    total = 0.0
    for image, advantage in enumerate(golden["advantages"].tolist()):
        for token in range(log_probs.shape[1]):
            ratio = math.exp(log_probs[image, token].item() - old[image, token].item())
            difference = reference[image, token].item() - log_probs[image, token].item()
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            total += 0.1 * (math.exp(difference) - difference - 1) - surrogate
    assert loss.item() == pytest.approx(total / log_probs.numel(), abs=1e-6)
    # The one metric that the reference averages over all tokens, also those that its mask leaves out.
    assert stats.ratio.item() == pytest.approx(META["cases"]["bnpo_beta0.1_old"]["metrics"]["coef_1"], abs=1e-6)


def test_clipping_by_hand():
    # Ratios 1.5, 0.5, 1.1 for a good, a bad and an indifferent image.
    log_probs = torch.tensor([[1.5, 0.5, 1.1]]).log().repeat(3, 1).requires_grad_()
    old, advantages = torch.zeros(3, 3), torch.tensor([2.0, -2.0, 0.0])
    surrogate = clipped_surrogate(log_probs, old, advantages, clip=0.2)
    expected = torch.tensor([[2.4, 1.0, 2.2], [-3.0, -1.6, -2.2], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(surrogate, expected, rtol=0, atol=1e-6)
    loss, stats = grpo_loss(log_probs, old, log_probs.detach(), advantages, LossConfig(clip=0.2, kl_weight=0.0))
    # Cut are 1.5 for the good image and 0.5 for the bad one: two of nine tokens.
    assert stats.clip_fraction.item() == pytest.approx(2 / 9)
    assert stats.ratio.item() == pytest.approx((1.5 + 0.5 + 1.1) / 3)
    assert stats.kl.item() == 0.0
    loss.backward()
    assert log_probs.grad is not None
    # d ratio / d log-probability is the ratio; a cut token has no gradient.
    gradient = -torch.tensor([[0.0, 1.0, 2.2], [-3.0, 0.0, -2.2], [0.0, 0.0, 0.0]]) / 9
    torch.testing.assert_close(log_probs.grad, gradient, rtol=0, atol=1e-6)


def test_stats_carry_no_gradient():
    log_probs = torch.zeros(2, 3, requires_grad=True)
    _, stats = grpo_loss(log_probs, torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), LossConfig())
    assert not any(getattr(stats, name).requires_grad for name in ("surrogate", "kl", "ratio", "clip_fraction"))


def test_k3_is_never_negative():
    rng = torch.Generator().manual_seed(0)
    log_probs, reference = torch.randn(50, 40, generator=rng) * 3, torch.randn(50, 40, generator=rng) * 3
    assert (k3_divergence(log_probs, reference) >= 0).all()
    # exp(d) - d - 1 loses all digits of small differences; d^2 / 2 must come out all the same.
    near = k3_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    assert near.item() == pytest.approx(1e-6 / 2, rel=2e-3)
    assert k3_divergence(log_probs, log_probs).abs().max() == 0


def test_k3_is_unbiased():
    rng = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(1, 12, generator=rng, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    kl = (policy.exp() * (policy - reference)).sum()
    # The expectation over the policy's own distribution is exact.
    expectation = (policy.exp() * k3_divergence(policy, reference)).sum()
    torch.testing.assert_close(expectation, kl, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("field", "value"), [("clip", 0.0), ("clip", 1.0), ("kl_weight", -0.1)])
def test_config_errors(field: str, value: float):
    with pytest.raises(ValueError, match=f"loss.{field}: {value}"):
        LossConfig(**{field: value})
