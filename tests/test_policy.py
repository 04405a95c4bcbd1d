"""Sampling and scoring: one distribution, drawn from exactly."""

import math

import pytest
import torch
from golden_data import golden_llamagen, golden_var, llamagen_conditions
from tiny import tiny_captions, tiny_conditions, tiny_llamagen, tiny_var
from torch import Tensor

from sfumato.policy import Policy, entropy_of, inverse_cdf, uniform_numbers
from sfumato.rollout import Conditions


def numbered(labels: list[int]) -> Conditions:
    return Conditions(labels=torch.tensor(labels), names=tuple(map(str, labels)))


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@torch.no_grad()
def test_sampled_equals_recomputed(variant: str, guidance: float):
    policy = Policy(golden_var(variant, guidance), temperature=0.7)
    rollout = policy.sample(numbered([0, 3, 9, 3]), torch.tensor([5, 6, 7, 8]))
    log_probs = policy.log_probs(rollout.conditions, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, log_probs, rtol=0, atol=1e-4)
    entropy = policy.entropy(rollout.conditions, rollout.tokens)
    torch.testing.assert_close(rollout.entropy, entropy, rtol=0, atol=1e-4)
    # Different draws and temperatures would show.
    assert not torch.equal(rollout.tokens[1], rollout.tokens[3])
    other = Policy(policy.generator, temperature=1.0).log_probs(rollout.conditions, rollout.tokens)
    assert (other - log_probs).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
@pytest.mark.parametrize(("guidance", "interval"), [(1.0, -1), (0.0, -1), (1.5, -1), (1.5, 4)])
@torch.no_grad()
def test_sampled_equals_recomputed_token_by_token(variant: str, guidance: float, interval: int):
    policy = Policy(golden_llamagen(variant, guidance, interval), temperature=0.7)
    conditions = llamagen_conditions(variant)[torch.tensor([0, 2, 3, 0])]
    rollout = policy.sample(conditions, torch.tensor([5, 6, 7, 8]))
    torch.testing.assert_close(rollout.log_probs, policy.log_probs(conditions, rollout.tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, policy.entropy(conditions, rollout.tokens), rtol=0, atol=1e-4)
    assert not torch.equal(rollout.tokens[0], rollout.tokens[3])


@torch.no_grad()
def test_scores_are_those_of_the_guided_logits_over_the_temperature():
    generator = golden_var("a", 1.5)
    policy, conditions = Policy(generator, temperature=0.7), numbered([1, 2])
    tokens = policy.sample(conditions, torch.arange(2)).tokens
    expected = (generator.logits(conditions, tokens) / 0.7).log_softmax(-1)
    log_probs = policy.log_probs(conditions, tokens)
    torch.testing.assert_close(log_probs, expected.gather(-1, tokens[..., None])[..., 0], rtol=0, atol=1e-5)
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(policy.entropy(conditions, tokens), entropy, rtol=0, atol=1e-5)


def test_a_seed_decides_an_image_whatever_the_batch():
    policy = Policy(golden_var("b", 1.5), temperature=0.7)
    labels, seeds = [4, 1, 7, 2, 4], torch.tensor([11, 12, 13, 14, 2**62 - 1])
    together = policy.sample(numbered(labels), seeds)
    assert torch.equal(policy.sample(numbered(labels), seeds).tokens, together.tokens)
    for i, label in enumerate(labels):
        alone = policy.sample(numbered([label]), seeds[i : i + 1])
        assert torch.equal(alone.tokens[0], together.tokens[i])
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = policy.sample(numbered([labels[i] for i in order.tolist()]), seeds[order])
    assert torch.equal(shuffled.tokens, together.tokens[order])
    assert not torch.equal(together.tokens[0], together.tokens[4])


@pytest.mark.parametrize("text", [False, True])
def test_a_seed_decides_an_image_whatever_the_batch_and_its_captions(text: bool):
    policy = Policy(tiny_llamagen(guidance=1.5, text=text, guidance_interval=5), temperature=0.7)
    labels, seeds = [3, 1, 0, 2, 3], torch.tensor([11, 12, 13, 14, 15])
    conditions = tiny_captions([3, 1, 5, 2], rows=labels) if text else tiny_conditions(labels)
    together = policy.sample(conditions, seeds)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(policy.sample(conditions[order], seeds[order]).tokens, together.tokens[order])
    for i in range(5):
        alone = policy.sample(conditions[i : i + 1], seeds[i : i + 1])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], rtol=0, atol=1e-5)
    assert not torch.equal(together.tokens[0], together.tokens[4])
    assert together.tokens.unique().numel() > 8


def test_log_probs_have_gradients_and_samples_have_none():
    policy = Policy(tiny_var())
    rollout = policy.sample(tiny_conditions([0, 1]), torch.arange(2))
    assert not rollout.log_probs.requires_grad
    assert policy.log_probs(rollout.conditions, rollout.tokens).requires_grad
    assert not policy.decode(rollout.tokens).requires_grad


def test_filter_restricts_the_support():
    generator = golden_var("a")
    policy = Policy(generator, temperature=0.7)
    conditions = numbered([0, 1, 2, 3])

    def greedy(logits: Tensor) -> Tensor:
        return generator.filter(logits, top_k=1)

    first = policy.sample(conditions, torch.arange(4), greedy)
    assert torch.equal(first.tokens, policy.sample(conditions, torch.arange(4, 8), greedy).tokens)
    assert torch.equal(first.log_probs, torch.zeros(4, 30))
    assert torch.equal(first.entropy, torch.zeros(4, 30))

    def even(logits: Tensor) -> Tensor:
        return logits.masked_fill(torch.arange(64) % 2 == 1, -torch.inf)

    rollout = policy.sample(conditions, torch.arange(4), even)
    assert (rollout.tokens % 2 == 0).all()
    assert rollout.tokens.unique().numel() > 10
    # The recorded numbers are those of the filtered distribution.
    logits = even(generator.logits(conditions, rollout.tokens).detach() / 0.7).log_softmax(-1)
    expected = logits.gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(rollout.log_probs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, entropy_of(logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float):
    with pytest.raises(ValueError, match=r"temperature: .* must be above 0"):
        Policy(tiny_var(), temperature)


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = torch.tensor([[0.0, 0.2, 0.25, 0.5, 0.7, 0.75, 0.99, 1 - 2**-24]])
    tokens = inverse_cdf(probabilities.expand(1, 8, 5), uniforms)
    assert tokens.tolist() == [[0, 0, 2, 2, 2, 3, 3, 3]]


def test_inverse_cdf_never_leaves_the_support():
    # A zero at the front, zeros at the back, and a sum that rounding has left below 1.
    probabilities = torch.cat([torch.zeros(1), torch.full((1000,), 0.9999e-3), torch.zeros(3)])
    uniforms = torch.tensor([[0.0, 0.5, 0.99999, 1 - 2**-24]])
    tokens = inverse_cdf(probabilities.expand(1, 4, -1), uniforms)
    assert tokens[0, 0] == 1
    assert tokens.min() >= 1
    assert tokens.max() <= 1000
    assert tokens[0, 1].item() == pytest.approx(500, abs=1)


def test_inverse_cdf_frequencies():
    count, size = 200_000, 12
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 1.5
    probabilities = logits.softmax(-1)
    uniforms = uniform_numbers(torch.tensor([0]), count)
    counts = torch.bincount(inverse_cdf(probabilities.expand(1, count, size), uniforms)[0], minlength=size)
    chi_square = ((counts - count * probabilities).square() / (count * probabilities)).sum().item()
    # 11 degrees of freedom: above 31.3 once in a thousand seeds, and in the hundreds for a wrong distribution.
    assert chi_square < 31.3


def test_samples_have_the_frequencies_of_the_first_unit():
    policy = Policy(tiny_var(), temperature=0.5)
    conditions = tiny_conditions([2] * 4000)
    tokens = policy.sample(conditions, torch.arange(4000)).tokens[:, 0]
    with torch.no_grad():
        probabilities = (policy.generator.step(policy.generator.start(conditions[:1]), None)[0, 0] / 0.5).softmax(-1)
    expected = 4000 * probabilities
    counts = torch.bincount(tokens, minlength=16)
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert chi_square < 37.7  # 15 degrees of freedom, one in a thousand


def test_uniform_numbers():
    numbers = uniform_numbers(torch.tensor([3, 4, 3, 2**62]), 5000)
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # A prefix does not depend on how many are drawn.
    assert torch.equal(uniform_numbers(torch.tensor([4]), 7)[0], numbers[1, :7])
    # Mean 1/2 and variance 1/12, to five standard errors.
    torch.testing.assert_close(numbers[:2].mean(1), torch.full((2,), 0.5), rtol=0, atol=5 * (1 / 12 / 5000) ** 0.5)
    torch.testing.assert_close(numbers[:2].var(1), torch.full((2,), 1 / 12), rtol=0, atol=5 * (1 / 180 / 5000) ** 0.5)
    with pytest.raises(ValueError, match="seeds: -1 is negative"):
        uniform_numbers(torch.tensor([0, -1]), 5)


def test_entropy_by_hand():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]]).log()
    expected = torch.tensor([[math.log(2), math.log(4), 0.0]])
    torch.testing.assert_close(entropy_of(log_probs), expected, rtol=0, atol=1e-6)
