"""The other objectives: by hand, and against gradients of the formulas as the papers write them."""

import math
from typing import Any

import pytest
import torch
from errors import bad_input
from torch import Tensor

from sfumato.objectives import CISPO, DAPO, GRPO, GSPO, OBJECTIVES, RLOO, Credit, DrGRPO, ScaleWeightedGRPO
from sfumato.objectives.advantages import group_advantages, leave_one_out_advantages
from sfumato.objectives.divergences import k1_divergence, k2_divergence, k3_divergence
from sfumato.objectives.ratios import unit_means
from sfumato.objectives.scale_weights import unit_weights
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request

UNITS = (1, 4, 1)
IMAGES, LENGTH = 6, sum(UNITS)


def made(seed: int = 0, reference: bool = True) -> tuple[Batch, Tensor]:
    """Return two groups of three images in double precision, and log-probabilities after some updates."""
    rng = torch.Generator().manual_seed(seed)
    old, drift, away = (
        torch.randn(IMAGES, LENGTH, generator=rng, dtype=torch.float64) * scale for scale in (1.0, 0.4, 0.5)
    )
    rollout = Rollout(
        request=class_request([0] * IMAGES),
        tokens=torch.zeros(IMAGES, LENGTH, dtype=torch.int64),
        log_probs=old - 3,
        entropy=torch.zeros(IMAGES, LENGTH),
        units=UNITS,
    )
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.5, 0.4], dtype=torch.float64)
    batch = Batch(
        rollout=rollout,
        rewards=rewards,
        scores={"sharp": rewards},
        weights={"sharp": 1.0},
        group_size=3,
        reference_log_probs=old - 3 + away if reference else None,
    )
    return batch, (old - 3 + drift).requires_grad_()


def gradient(loss: Tensor, log_probs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, log_probs)[0]


def assert_same(objective: Any, naive: Any, reference: bool = True, weights: Tensor | None = None) -> None:
    """Compare loss and gradient with a sum over images and tokens: naive(image, token, ratio, advantage, ...)."""
    batch, log_probs = made(reference=reference and objective.needs_reference)
    credit = objective.credit(batch) if weights is None else Credit(weights=weights)
    loss, _ = objective.loss(log_probs, batch, credit)
    total = torch.zeros((), dtype=torch.float64)
    for image in range(IMAGES):
        for token in range(LENGTH):
            advantage = credit.weights.expand(-1, LENGTH)[image, token]
            total = total + naive(batch, log_probs, image, token, advantage)
    expected = total / (IMAGES * LENGTH)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(loss, log_probs), gradient(expected, log_probs), rtol=1e-10, atol=1e-14)


def ratio_of(batch: Batch, log_probs: Tensor, image: int, token: int) -> Tensor:
    return (log_probs[image, token] - batch.rollout.log_probs[image, token]).exp()


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def test_dapo_has_two_bounds():
    def naive(batch: Batch, log_probs: Tensor, image: int, token: int, advantage: Tensor) -> Tensor:
        return clipped(ratio_of(batch, log_probs, image, token), advantage, 0.1, 0.6)

    assert_same(DAPO(clip=0.1, clip_high=0.6), naive)
    batch, log_probs = made()
    objective = DAPO(clip=0.1, clip_high=0.6)
    credit = objective.credit(batch)
    _, stats = objective.loss(log_probs, batch, credit)
    ratio, positive = (log_probs.detach() - batch.rollout.log_probs).exp(), credit.weights > 0
    expected = torch.where(positive, ratio > 1.6, ratio < 0.9) & (credit.weights != 0)
    assert stats["clip_fraction"] == expected.float().mean() > 0
    assert torch.equal(credit.weights, GRPO().credit(batch).weights)


@pytest.mark.parametrize("level", ["image", "unit"])
def test_gspo_shares_ratios(level: Any):
    places = [slice(0, 1), *[slice(1, 5)] * 4, slice(5, 6)]

    def naive(batch: Batch, log_probs: Tensor, image: int, token: int, advantage: Tensor) -> Tensor:
        place = slice(0, LENGTH) if level == "image" else places[token]
        difference = log_probs[image, place] - batch.rollout.log_probs[image, place]
        ratio = (difference.sum() / len(difference)).exp()
        kl = k3_divergence(log_probs, batch.reference_log_probs)[image, token]  # pyright: ignore[reportArgumentType]
        return clipped(ratio, advantage, 0.05, 0.1) + 0.3 * kl

    assert_same(GSPO(clip_below=0.05, clip_above=0.1, level=level, kl_weight=0.3), naive)


def test_gspo_of_single_tokens_is_grpo():
    batch, log_probs = made()
    batch = Batch(**{**vars(batch), "rollout": Rollout(**{**vars(batch.rollout), "units": (1,) * LENGTH})})
    credit = GRPO().credit(batch)
    mine, _ = GSPO(clip_below=0.2, clip_above=0.2, level="unit", kl_weight=0.1).loss(log_probs, batch, credit)
    theirs, _ = GRPO(clip=0.2, kl_weight=0.1).loss(log_probs, batch, credit)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


def test_cispo_gives_every_token_a_gradient():
    def naive(batch: Batch, log_probs: Tensor, image: int, token: int, advantage: Tensor) -> Tensor:
        weight = ratio_of(batch, log_probs, image, token).detach().clamp(max=1.2)
        return -weight * advantage * log_probs[image, token]

    assert_same(CISPO(largest_ratio=1.2), naive)
    batch, log_probs = made()
    credit = CISPO().credit(batch)
    loss, stats = CISPO(largest_ratio=1.2).loss(log_probs, batch, credit)
    ratio = (log_probs.detach() - batch.rollout.log_probs).exp()
    assert stats["clip_fraction"] == (ratio > 1.2).float().mean() > 0
    assert (gradient(loss, log_probs) != 0).all()
    clipped_loss, _ = GRPO(kl_weight=0.0).loss(log_probs, batch, credit)
    assert (gradient(clipped_loss, log_probs) == 0).any()


def test_rloo_by_hand():
    batch, _ = made(reference=False)
    credit = RLOO().credit(batch)
    expected = [1 - 4, 2 - 3.5, 6 - 1.5, 0 - 0.45, 0.5 - 0.2, 0.4 - 0.25]
    torch.testing.assert_close(
        credit.weights[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )

    def naive(batch: Batch, log_probs: Tensor, image: int, token: int, advantage: Tensor) -> Tensor:
        return -advantage * log_probs[image, token]

    assert_same(RLOO(kl_weight=0.0), naive)
    assert not RLOO(kl_weight=0.0).needs_reference


def test_rloo_has_the_kl_in_its_reward():
    batch, _ = made()
    assert batch.reference_log_probs is not None
    kl = (batch.rollout.log_probs - batch.reference_log_probs).mean(1)
    expected, _ = leave_one_out_advantages(batch.rewards - 0.7 * kl, 3)
    credit = RLOO(kl_weight=0.7).credit(batch)
    torch.testing.assert_close(credit.weights[:, 0], expected, rtol=1e-12, atol=0)
    assert credit.metrics["kl"] == pytest.approx(kl.mean().item())


def test_leave_one_out_without_scores():
    rewards = torch.tensor([1.0, math.nan, 4.0, 2.0, 2.0, 2.0, math.nan, math.nan, 5.0])
    advantages, equal = leave_one_out_advantages(rewards, 3)
    assert advantages.tolist() == [-3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert equal.tolist() == [False, True, True]


def test_scales_of_advantages():
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.5, math.nan])
    plain, equal = group_advantages(rewards, 3, deviation="none")
    torch.testing.assert_close(plain, torch.tensor([-2.0, -1.0, 3.0, -0.25, 0.25, 0.0]), rtol=1e-6, atol=1e-6)
    batch, _ = group_advantages(rewards, 3, deviation="batch")
    torch.testing.assert_close(batch, plain / torch.tensor([1.0, 2.0, 6.0, 0.0, 0.5]).std(), rtol=1e-6, atol=1e-6)
    assert equal.tolist() == [False, False]
    whole, _ = made()
    torch.testing.assert_close(
        DrGRPO().credit(whole).weights[:, 0],
        torch.tensor([-2.0, -1.0, 3.0, -0.3, 0.2, 0.1], dtype=torch.float64), rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    torch.testing.assert_close(
        GRPO(deviation="batch").credit(whole).weights * whole.rewards.std(),
        DrGRPO().credit(whole).weights,
        rtol=1e-12,
        atol=0,
    )


def test_token_weights_of_scales():
    weights = unit_weights(UNITS, 1.0)
    sums = [part.sum().item() for part in weights.split(UNITS)]
    assert sums == pytest.approx([2.0, 2.0, 2.0])  # all scales count alike, and the mean over six tokens is 1
    assert unit_weights(UNITS, 0.0).tolist() == [1.0] * LENGTH
    half = unit_weights(UNITS, 0.5)
    assert half[1] / half[0] == pytest.approx(0.5)
    batch, _ = made()
    credit = ScaleWeightedGRPO(alpha=1.0).credit(batch)
    expected = GRPO().credit(batch).weights * weights
    torch.testing.assert_close(credit.weights, expected, rtol=1e-6, atol=0)
    assert credit.weights.shape == (IMAGES, LENGTH)


def test_means_of_units():
    values = torch.tensor([[1.0, 2.0, 4.0, 6.0, 8.0, 9.0]])
    assert unit_means(values, UNITS).tolist() == [[1.0, 5.0, 5.0, 5.0, 5.0, 9.0]]
    assert unit_means(values, (LENGTH,)).tolist() == [[5.0] * LENGTH]


def test_estimates_of_the_kl():
    """On average over tokens drawn from the policy all are the KL, k2 nearly; only k2's gradient is that of the KL."""
    logits = torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.45, -1.05, 0.3, 0.05], dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    kl = (log_probs.exp() * (log_probs - reference)).sum()
    chances, rows = log_probs.exp().detach(), (log_probs[None], reference[None])
    k1, k2, k3 = ((chances * kind(*rows)[0]).sum() for kind in (k1_divergence, k2_divergence, k3_divergence))
    assert k1.item() == pytest.approx(kl.item(), rel=1e-12)
    assert k3.item() == pytest.approx(kl.item(), rel=1e-12)
    assert k2.item() == pytest.approx(kl.item(), rel=0.05)
    exact, of_k2 = gradient_of(kl, logits), gradient_of(k2, logits)
    torch.testing.assert_close(of_k2, exact, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(gradient_of(k1, logits), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert not torch.allclose(gradient_of(k3, logits), exact, rtol=1e-3)


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def test_grpo_with_the_other_penalty():
    def naive(batch: Batch, log_probs: Tensor, image: int, token: int, advantage: Tensor) -> Tensor:
        assert batch.reference_log_probs is not None
        difference = log_probs[image, token] - batch.reference_log_probs[image, token]
        return clipped(ratio_of(batch, log_probs, image, token), advantage, 0.2, 0.2) + 0.1 * difference**2 / 2

    assert_same(GRPO(kl_weight=0.1, kl="k2"), naive)


WITHOUT_REFERENCE: dict[str, dict[str, Any]] = {"dapo": {}, "gcpo": {"kl_weight": 0.0, "dynamic": False}}
OTHERS = {"entropy-grpo", "tree-grpo", "reasoning-grpo", "best-of-n", "dpo", "cca", "va-pi"}
"""Objectives with other batches, or whose bonus moves all images; they have tests of their own."""


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in OTHERS])
def test_objectives_leave_images_without_a_score_alone(name: str):
    batch, log_probs = made()
    rewards = batch.rewards.clone()
    rewards[[1, 3, 4, 5]] = math.nan
    part = Batch(**{**vars(batch), "rewards": rewards, "scores": {"sharp": rewards}})
    objective = OBJECTIVES[name](**WITHOUT_REFERENCE.get(name, {"kl_weight": 0.0}))
    credit = objective.credit(Batch(**{**vars(part), "reference_log_probs": None}))
    loss, _ = objective.loss(log_probs, Batch(**{**vars(part), "reference_log_probs": None}), credit)
    moved = (gradient(loss, log_probs) != 0).any(1).tolist()
    assert moved[1:2] + moved[3:] == [False] * 4
    assert credit.taught is not None
    assert credit.taught.tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DAPO(clip_high=0.0), "objective.clip_high"),
        (lambda: DAPO(clip=1.5), "objective.clip"),
        (lambda: GSPO(clip_above=math.inf), "objective.clip_below"),
        (lambda: CISPO(largest_ratio=0.5), "objective.largest_ratio"),
        (lambda: RLOO(kl_weight=-1.0), "objective.kl_weight"),
        (lambda: ScaleWeightedGRPO(alpha=3.0), "objective.alpha"),
    ],
)
def test_options_out_of_range(make: Any, field: str):
    with bad_input(field):
        make()
