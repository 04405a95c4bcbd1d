"""Objectives without ratios: by hand, and against gradients of the formulas as the papers write them."""

import math
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_config, tiny_request, trainer_of
from torch import Tensor

from sfumato.objectives import OBJECTIVES
from sfumato.objectives.best_of_n import BestOfN, extremes
from sfumato.objectives.cca import CCA
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.dpo import DPO, PairCredit
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.objective import Credit, Objective
from sfumato.objectives.va_pi import ReconstructionCredit, VAPi
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request

LENGTH = 5
REWARDS = (1.0, 2.0, 6.0, 0.0, 0.5, 0.4, 3.0, 3.0, 3.0)
"""Three groups: the best is the third, then the second; the last has no best."""


def made(rewards: tuple[float, ...] = REWARDS, group_size: int = 3, reference: bool = True) -> tuple[Batch, Tensor]:
    """Return a batch in double precision, and log-probabilities under the policy that drew it, with gradients."""
    rng = torch.Generator().manual_seed(0)
    old, away = (torch.randn(len(rewards), LENGTH, generator=rng, dtype=torch.float64) for _ in range(2))
    rollout = Rollout(
        request=class_request([0] * len(rewards)),
        tokens=torch.zeros(len(rewards), LENGTH, dtype=torch.int64),
        log_probs=old - 3,
        entropy=torch.zeros(len(rewards), LENGTH),
        units=(1, 4),
    )
    known = torch.tensor(rewards, dtype=torch.float64)
    batch = Batch(
        rollout=rollout,
        rewards=known,
        scores={"sharp": known},
        weights={"sharp": 1.0},
        group_size=group_size,
        reference_log_probs=old - 3 + 0.5 * away if reference else None,
    )
    return batch, (old - 3).requires_grad_()


def gradient(loss: Tensor, log_probs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, log_probs, retain_graph=True)[0]


def gradient_in_parts(objective: Objective, batch: Batch, credit: Credit, log_probs: Tensor) -> Tensor:
    """Return the gradient that an engine adds up over micro-batches of two in random order, without untaught images."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    if credit.taught is not None:
        order = order[credit.taught[order]]
    total = torch.zeros_like(log_probs)
    for index in order.split(2):
        loss, _ = objective.loss(log_probs[index], batch[index], credit[index])
        total += gradient(loss * len(index) / len(batch), log_probs)
    return total


def assert_gradient(objective: Objective, batch: Batch, log_probs: Tensor, expected: Tensor) -> Credit:
    """Compare the gradient of the whole batch, and that of its parts, with that of another loss; return the credit."""
    credit, wanted = objective.credit(batch), gradient(expected, log_probs)
    loss, _ = objective.loss(log_probs, batch, credit)
    torch.testing.assert_close(gradient(loss, log_probs), wanted, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient_in_parts(objective, batch, credit, log_probs), wanted, rtol=1e-10, atol=1e-14)
    return credit


def test_extremes_of_groups():
    rewards = torch.tensor([1.0, torch.nan, 3.0, 2.0, 5.0, 5.0, 4.0, 4.0, torch.nan, 7.0, torch.nan, torch.nan])
    best, worst, equal = extremes(rewards, 4)
    assert best.tolist()[:2] == [2, 4]  # the first of two that are equally good
    assert worst.tolist()[:2] == [0, 6]
    assert equal.tolist() == [False, False, True]  # a single known reward is the best of nothing
    with bad_input("group_size", "5", "12"):
        extremes(rewards, 5)


def test_best_of_n_teaches_the_best_alone():
    batch, log_probs = made(reference=False)
    expected = -(log_probs[2].mean() + log_probs[4].mean()) / 3  # of three groups, the last teaches nothing
    credit = assert_gradient(BestOfN(), batch, log_probs, expected)
    assert credit.weights[:, 0].tolist() == [0, 0, 3, 0, 3, 0, 0, 0, 0]
    assert credit.taught is not None
    assert credit.taught.nonzero()[:, 0].tolist() == [2, 4]
    assert credit.metrics["equal_groups"] == torch.tensor(1 / 3).item()


def test_best_of_n_learns_as_fast_from_larger_groups():
    lengths = []
    for size in (2, 8):
        batch, log_probs = made(tuple(map(float, range(8))), size, reference=False)
        objective = BestOfN()
        loss, _ = objective.loss(log_probs, batch, objective.credit(batch))
        lengths.append(gradient(loss, log_probs).sum().item())
    assert lengths[0] == lengths[1] != 0


def test_best_of_n_with_a_kl():
    batch, log_probs = made()
    assert batch.reference_log_probs is not None
    kl = k3_divergence(log_probs, batch.reference_log_probs).mean()
    expected = 0.3 * kl - (log_probs[2].mean() + log_probs[4].mean()) / 3
    credit = assert_gradient(BestOfN(kl_weight=0.3), batch, log_probs, expected)
    assert credit.taught is None  # the KL keeps all images
    with bad_input("objective.kl_weight", "-1"):
        BestOfN(kl_weight=-1.0)


@pytest.mark.parametrize(("objective", "learned"), [(BestOfN(), [2]), (DPO(), [0, 2])], ids=["best-of-n", "dpo"])
def test_images_without_a_score_are_left_alone(objective: Objective, learned: list[int]):
    none = float("nan")
    batch, log_probs = made((1.0, none, 6.0, none, none, 2.0, none, none, none), reference=objective.needs_reference)
    credit = objective.credit(batch)
    loss, _ = objective.loss(log_probs, batch, credit)
    assert credit.taught is not None
    assert credit.taught.nonzero()[:, 0].tolist() == learned
    assert (gradient(loss, log_probs) != 0).any(1).nonzero()[:, 0].tolist() == learned
    assert credit.metrics["equal_groups"] == torch.tensor(2 / 3).item()


def pair_loss(batch: Batch, log_probs: Tensor, beta: float, better: int, worse: int) -> Tensor:
    """Return the loss of DPO as the paper writes it (eq. 7)."""
    assert batch.reference_log_probs is not None
    total, other = log_probs.sum(1), batch.reference_log_probs.sum(1)
    chosen, rejected = total[better] - other[better], total[worse] - other[worse]
    return -torch.log(1 / (1 + torch.exp(-beta * (chosen - rejected))))


def test_dpo_has_the_gradient_of_pairs():
    """With one update the policy is still the one that drew, and the pairs may be split among micro-batches."""
    batch, log_probs = made()
    expected = (pair_loss(batch, log_probs, 0.2, 2, 0) + pair_loss(batch, log_probs, 0.2, 4, 3)) / 3
    credit = assert_gradient(DPO(beta=0.2), batch, log_probs, expected)
    assert credit.taught is not None
    assert credit.taught.nonzero()[:, 0].tolist() == [0, 2, 3, 4]
    assert credit.metrics["equal_groups"] == torch.tensor(1 / 3).item()
    assert credit.metrics["kl"] > 0
    value, stats = DPO(beta=0.2).loss(log_probs, batch, credit)
    torch.testing.assert_close(value, 2 * expected)  # each image of a pair has the loss of the pair
    assert batch.reference_log_probs is not None
    ratios = (log_probs - batch.reference_log_probs).detach().sum(1)
    margins = [ratios[2] - ratios[0], ratios[4] - ratios[3]]
    torch.testing.assert_close(stats["margin"], 2 * sum(margins, torch.zeros(())).double() / 9)
    assert stats["pairs_in_order"] == 2 * sum(float(margin > 0) for margin in margins) / 9


def test_an_update_has_the_gradient_of_dpo(tiny_model: Path):
    """The norm of the gradient, added up over micro-batches of three images, is that of the loss on whole pairs."""
    trainer = trainer_of(tiny_config(tiny_model, objective=DPO(beta=0.5), micro_batch_size=3))
    request = tiny_request([0] * 4 + [2] * 4)
    trainer.update(*trainer.collect(request), torch.arange(8))  # the policy leaves the reference
    batch, credit = trainer.collect(request, torch.arange(8, 16))
    better, worse = (extremes(batch.rewards, 4)[which].tolist() for which in (0, 1))
    log_probs = trainer.policy.log_probs(request, batch.rollout.tokens)
    losses = [pair_loss(batch, log_probs, 0.5, *pair) for pair in zip(better, worse, strict=True)]
    assert len({round(loss.item(), 4) for loss in losses} - {round(math.log(2), 4)}) == 2
    gradients = torch.autograd.grad(sum(losses, torch.zeros(())) / 2, trainer.engine.parameters)
    expected = torch.cat([part.flatten() for part in gradients]).norm().item()
    stats = trainer.update(batch, credit, torch.tensor([5, 0, 3, 1, 7, 2, 6, 4]))
    assert stats["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert stats["skipped_images"] == 0.5


def test_dpo_meets_the_partner_of_the_rollout_after_an_update():
    batch, log_probs = made()
    credit = DPO(beta=0.2).credit(batch)
    assert isinstance(credit, PairCredit)
    drifted = (log_probs.detach() + 0.3).requires_grad_()  # all log-ratios are larger by 5 · 0.3
    loss, _ = DPO(beta=0.2).loss(drifted, batch, credit)
    assert batch.reference_log_probs is not None
    ratios = (batch.rollout.log_probs - batch.reference_log_probs).sum(1)
    found = gradient(loss, drifted)[:, 0] * 3  # the mean over nine images, of which a pair counts as three
    for better, worse in ((2, 0), (4, 3)):
        up = torch.sigmoid(-0.2 * (ratios[better] + 1.5 - ratios[worse]))
        down = torch.sigmoid(-0.2 * (ratios[better] - (ratios[worse] + 1.5)))
        torch.testing.assert_close(found[better], -0.2 * up)
        torch.testing.assert_close(found[worse], 0.2 * down)
    with bad_input("objective.beta", "0"):
        DPO(beta=0.0)


def test_cca_contrasts_conditions():
    batch, log_probs = made((1.0, 0.0, 1.0, 1.0), 2)  # the second image meets its own condition again
    assert batch.reference_log_probs is not None
    ratios = (log_probs - batch.reference_log_probs).sum(1)
    up, down = -torch.log(torch.sigmoid(0.1 * ratios)), -torch.log(torch.sigmoid(-0.1 * ratios))
    for weight, scale in ((8.0, 8.0), (0.5, 1.0)):
        expected = (up[0] + weight * down[1] + up[2] + up[3]) / 2 / scale  # of two images
        objective = CCA(beta=0.1, mismatch_weight=weight)
        credit = assert_gradient(objective, batch, log_probs, expected)
        loss, stats = objective.loss(log_probs, batch, credit)
        torch.testing.assert_close(loss, expected)
        signed = ratios.detach() * torch.tensor([1, -1, 1, 1])
        torch.testing.assert_close(stats["margin"], signed.mean())
        assert stats["pairs_in_order"] == (signed > 0).float().mean()
    with bad_input("objective.mismatch_weight", "-2"):
        CCA(mismatch_weight=-2.0)
    with bad_input("objective.beta", "nan"):
        CCA(beta=float("nan"))


def test_va_pi_adds_the_likelihood_of_true_tokens():
    none = float("nan")
    batch, _ = made((none, -1.0, -3.0, none, -2.0, -2.0, none, -1.0, -1.5), reference=False)
    log_probs = (batch.rollout.log_probs + 0.1).requires_grad_()
    advantages = GRPO().credit(batch).weights[:, 0]
    assert advantages[1] == -advantages[2] > 0
    ratio = (log_probs - batch.rollout.log_probs).exp()
    surrogate = torch.minimum(ratio * advantages[:, None], ratio.clamp(0.95, 1.05) * advantages[:, None])
    true = [0, 3, 6]
    others = [1, 2, 4, 5, 7, 8]
    expected = -surrogate[others].mean() - 0.25 * log_probs[true].mean()
    objective = VAPi(clip=0.05, likelihood_weight=0.25)
    credit = assert_gradient(objective, batch, log_probs, expected)
    loss, stats = objective.loss(log_probs, batch, credit)
    torch.testing.assert_close(loss, expected)
    assert isinstance(credit, ReconstructionCredit)
    assert credit.taught is not None
    assert credit.taught.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 6, 7, 8]  # equal reconstructions teach nothing
    assert stats["clip_fraction"] == torch.tensor(2 / 9)  # the better ones: all ratios are 1.1
    assert not VAPi(likelihood_weight=0.0).credit(batch).taught[true].any()  # pyright: ignore[reportOptionalSubscript]
    with bad_input("objective.likelihood_weight", "-1"):
        VAPi(likelihood_weight=-1.0)
    with bad_input("objective.clip", "2"):
        VAPi(clip=2.0)


def test_the_names_of_these_objectives():
    assert [OBJECTIVES[name] for name in ("best-of-n", "dpo", "cca", "va-pi")] == [BestOfN, DPO, CCA, VAPi]
