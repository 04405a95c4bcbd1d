"""Group-relative advantages: by hand, and against the reference trainer."""

import itertools
import json
import math

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN
from safetensors.torch import load_file

from sfumato.objectives.advantages import decoupled_advantages, group_advantages, max_variance_subset


def test_by_hand():
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, unbiased variance 14 / 3.
    advantages, equal = group_advantages(torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 9.0]), 4)
    std = math.sqrt(14 / 3)
    # 5, 5, 5, 9: mean 6, unbiased variance (1 + 1 + 1 + 9) / 3 = 4.
    expected = [-2 / std, -1 / std, 0.0, 3 / std, -0.5, -0.5, -0.5, 1.5]
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=0, atol=1e-6)
    assert equal.tolist() == [False, False]


def test_equal_rewards_give_exactly_zero():
    # In float32, the mean of three times 0.949 is not 0.949, so the difference would be amplified.
    for value in (0.949, 0.847, 0.1, -3.3, 1e6):
        advantages, equal = group_advantages(torch.tensor([value] * 3 + [0.0, 1.0, 2.0]), 3)
        assert advantages.tolist() == [0.0, 0.0, 0.0, -1.0, 0.0, 1.0]
        assert equal.tolist() == [True, False]


def test_floor_of_the_standard_deviation():
    rewards = torch.tensor([0.0, 2e-5])
    advantages, equal = group_advantages(rewards, 2, std_floor=1e-4)
    torch.testing.assert_close(advantages, torch.tensor([-0.1, 0.1]), rtol=1e-5, atol=0)
    assert equal.tolist() == [False]
    unfloored, _ = group_advantages(rewards, 2, std_floor=1e-9)
    torch.testing.assert_close(unfloored, torch.tensor([-1.0, 1.0]) / math.sqrt(2), rtol=1e-5, atol=0)


def test_groups_are_standardised_apart():
    rewards = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)[:, None] + 3
    advantages, _ = group_advantages(rewards.flatten(), 5)
    groups = advantages.unflatten(0, (6, 5))
    torch.testing.assert_close(groups.mean(1), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(groups.std(1), torch.ones(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "pieces"),
    [(4, 1, ("1",)), (6, 4, ("4", "6 images"))],
)
def test_errors(count: int, size: int, pieces: tuple[str, ...]):
    with bad_input("group_size", *pieces):
        group_advantages(torch.zeros(count), size)


def test_reference():
    golden, meta = load_file(GOLDEN / "grpo.safetensors"), json.loads((GOLDEN / "grpo_meta.json").read_text())
    advantages, equal = group_advantages(golden["rewards"], meta["group_size"])
    # The reference divides by std + 1e-4, this function by max(std, 1e-4).
    std = golden["group_std"]
    expected = torch.where(std > 0, golden["advantages"] * (std + 1e-4) / std.clamp_min(1e-4), 0.0)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-6)
    assert equal.tolist() == [True, False]


NAN = math.nan


def test_images_without_a_score():
    # The first group is 1, 2, 6 without its second image: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7.
    rewards = torch.tensor([1.0, NAN, 2.0, 6.0, NAN, NAN, NAN, 5.0, NAN, NAN, NAN, NAN, 2.0, 2.0, NAN, 2.0])
    advantages, equal = group_advantages(rewards, 4)
    std = math.sqrt(7)
    expected = [-2 / std, 0.0, -1 / std, 3 / std]
    torch.testing.assert_close(advantages[:4], torch.tensor(expected), rtol=0, atol=1e-6)
    assert advantages[[1, *range(4, 16)]].tolist() == [0.0] * 13
    assert equal.tolist() == [False, True, True, True]


def test_decoupled_by_hand():
    # Both rewards of the first group are 0, 1 in some order; each is normalized to ±1/√2, whatever its scale.
    rewards = torch.tensor([[0.0, 1.0, 5.0, 5.0], [0.0, 100.0, 3.0, 1.0]])
    advantages, equal = decoupled_advantages(rewards, torch.tensor([1.0, 0.5]), 2)
    half = 1 / math.sqrt(2)
    summed = torch.tensor([-1.5 * half, 1.5 * half, 0.5 * half, -0.5 * half])
    torch.testing.assert_close(advantages, summed / summed.std(), rtol=0, atol=1e-6)
    assert equal.tolist() == [False, False]


def test_decoupled_keeps_apart_what_a_sum_confuses():
    # Figure 2 of GDPO: with two binary rewards, (0, 1) and (0, 2) look the same after the sum is normalized.
    first, second = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(group_advantages(first.sum(0), 2)[0], group_advantages(second.sum(0), 2)[0])
    both, _ = decoupled_advantages(torch.cat([first, second], dim=1), torch.ones(2), 2)
    torch.testing.assert_close(both[3] / both[1], torch.tensor(2.0), rtol=1e-6, atol=0)


def test_decoupled_equal_and_unscored():
    rewards = torch.tensor([[0.949] * 3 + [0.0, NAN, 1.0], [0.1] * 3 + [2.0, 7.0, 4.0]])
    advantages, equal = decoupled_advantages(rewards, torch.tensor([1.0, 1.0]), 3)
    assert advantages[:3].tolist() == [0.0] * 3
    assert advantages[4] == 0
    assert equal.tolist() == [True, False]
    torch.testing.assert_close(advantages[3], -advantages[5], rtol=1e-6, atol=0)
    alone, _ = decoupled_advantages(torch.tensor([[NAN, NAN]]), torch.ones(1), 2)
    assert alone.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_no_subset_has_a_larger_variance(seed: int):
    rng = torch.Generator().manual_seed(seed)
    rewards = torch.randn(8, generator=rng) ** 3
    if seed > 1:
        rewards = rewards.round()  # with ties
    for count in range(2, 9):
        chosen = max_variance_subset(rewards, count)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == count
        best = max(rewards[list(subset)].var() for subset in itertools.combinations(range(8), count))
        assert rewards[chosen].var() == pytest.approx(best.item(), rel=1e-5)


def test_subsets_by_hand():
    assert max_variance_subset(torch.tensor([0.0, 1.0, 5.0, 4.9, 0.1]), 2).tolist() == [0, 2]
    assert max_variance_subset(torch.tensor([0.0, 1.0, 5.0, 4.9, 0.1]), 4).tolist() == [0, 2, 3, 4]
    # Large rewards that differ little: the sums of squares alone would not tell them apart.
    assert max_variance_subset(torch.tensor([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 1]), 2).tolist() == [0, 2]


def test_images_without_a_score_are_chosen_last():
    nan = math.nan
    assert max_variance_subset(torch.tensor([nan, 1.0, nan, 2.0, 3.0]), 2).tolist() == [1, 4]
    assert max_variance_subset(torch.tensor([nan, 1.0, nan, 2.0, 3.0]), 3).tolist() == [1, 3, 4]
    chosen = max_variance_subset(torch.tensor([nan, 1.0, nan, 2.0, 3.0]), 4).tolist()
    assert len(set(chosen)) == 4
    assert {1, 3, 4} < set(chosen)
