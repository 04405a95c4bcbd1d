"""The exact KL of a vocabulary of two, against torch's of Bernoulli distributions, in double precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from tiny import tiny_config, tiny_var, trainer_of
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from sfumato.objectives import CISPO, GRPO
from sfumato.objectives.divergences import bernoulli_divergence, k3_divergence, log1mexp
from sfumato.training.train import check_penalty

# The probability of a token is within 1e-6 of 0 or 1 from a logit of ±14 on.
LOGITS = torch.tensor([-16.0, -14.0, -5.0, -1.0, 0.0, 0.3, 4.0, 14.0, 16.0], dtype=torch.float64)


def pairs() -> tuple[Tensor, Tensor]:
    """Return all pairs of logits: (L, L) each, the first with gradients."""
    return LOGITS[:, None].repeat(1, len(LOGITS)).requires_grad_(), LOGITS.repeat(len(LOGITS), 1)


@pytest.mark.parametrize("drawn", [0, 1])
def test_the_drawn_token_fixes_the_divergence(drawn: int):
    own, other = pairs()
    expected = kl_divergence(Bernoulli(logits=own), Bernoulli(logits=other))
    sign = 2 * drawn - 1
    found = bernoulli_divergence((sign * own).sigmoid().log(), (sign * other).sigmoid().log())
    # Where both are the same, torch returns its rounding error.
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
    assert (found >= -1e-16).all()
    assert found.max() > 15
    gradients = [torch.autograd.grad(total.sum(), own)[0] for total in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_it_is_the_mean_of_the_estimate_over_what_is_drawn():
    policy, reference = torch.tensor([0.3, 0.9]).double(), torch.tensor([0.4, 0.7]).double()
    log_probs = torch.stack([policy.log(), (1 - policy).log()])
    others = torch.stack([reference.log(), (1 - reference).log()])
    mean = (log_probs.exp() * k3_divergence(log_probs, others)).sum(0)
    exact = bernoulli_divergence(log_probs, others)
    torch.testing.assert_close(exact, mean.expand(2, -1), rtol=1e-12, atol=0)


def test_certain_tokens_have_a_finite_divergence():
    """In float32 a probability within 6e-8 of 1 is 1; its logarithm has no information about the other token."""
    log_probs = torch.tensor([[0.0, 0.0, -1e-9, -20.0, -1e-6]], requires_grad=True)
    reference = torch.tensor([[0.0, -0.7, -1e-9, 0.0, 0.0]])
    found = bernoulli_divergence(log_probs, reference)
    (gradient,) = torch.autograd.grad(found.sum(), log_probs)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert found[0].tolist() == pytest.approx([0.0, 0.7, 0.0, 15.94, 1.2e-6], abs=0.01)
    assert gradient[0, :3].tolist() == [0.0, 0.0, 0.0]


def test_log1mexp():
    x = torch.tensor([[-1e-12, -1e-3, -0.7, -1.0, -50.0]], dtype=torch.float64)
    expected = [-27.631021, -6.908255, -0.686341, -0.458675, -1.9287498e-22]
    assert log1mexp(x)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_exact_kl_needs_tokens_of_two_values(tiny_model: Path):
    exact: Any = {"kl": "exact", "kl_weight": 0.1}
    with bad_input("objective.kl", "exact", "var", "k3"):
        trainer_of(tiny_config(tiny_model, objective=GRPO(**exact)))
    bits: Any = tiny_var()
    bits.vocabulary = 2
    check_penalty(GRPO(**exact), bits)
    for objective in (GRPO(), CISPO()):
        check_penalty(objective, tiny_var())
