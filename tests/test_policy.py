"""Sampling and scoring use the same distribution."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from errors import bad_input
from golden_data import golden_llamagen, golden_var, llamagen_request
from tiny import tiny_captions, tiny_llamagen, tiny_request, tiny_var
from torch import Tensor

from sfumato.families.var.generator import VAR
from sfumato.policy import Card, Policy, entropy_of, inverse_cdf, uniform_numbers
from sfumato.request import ClassInputs, Words
from sfumato.settings import Settings
from sfumato.testing import class_request


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("guidance", [None, 1.5])
@torch.no_grad()
def test_sampled_equals_recomputed(variant: str, guidance: float | None):
    policy = Policy(golden_var(variant), Settings(guidance=guidance, temperature=0.7))
    rollout = policy.sample(class_request([0, 3, 9, 3]), torch.tensor([5, 6, 7, 8]))
    log_probs = policy.log_probs(rollout.request, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, log_probs, rtol=0, atol=1e-4)
    entropy = policy.entropy(rollout.request, rollout.tokens)
    torch.testing.assert_close(rollout.entropy, entropy, rtol=0, atol=1e-4)
    # The test would detect another temperature or other draws.
    assert not torch.equal(rollout.tokens[1], rollout.tokens[3])
    other = Policy(policy.generator, Settings(guidance=guidance)).log_probs(rollout.request, rollout.tokens)
    assert (other - log_probs).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
@pytest.mark.parametrize(("guidance", "interval"), [(1.0, -1), (None, -1), (1.5, -1), (1.5, 4)])
@torch.no_grad()
def test_sampled_equals_recomputed_token_by_token(variant: str, guidance: float | None, interval: int):
    policy = Policy(golden_llamagen(variant, interval), Settings(guidance=guidance, temperature=0.7))
    request = llamagen_request(variant)[torch.tensor([0, 2, 3, 0])]
    rollout = policy.sample(request, torch.tensor([5, 6, 7, 8]))
    torch.testing.assert_close(rollout.log_probs, policy.log_probs(request, rollout.tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, policy.entropy(request, rollout.tokens), rtol=0, atol=1e-4)
    assert not torch.equal(rollout.tokens[0], rollout.tokens[3])


@torch.no_grad()
def test_scores_are_those_of_the_guided_logits_over_the_temperature():
    generator, settings = golden_var("a"), Settings(guidance=1.5, temperature=0.7)
    policy, request = Policy(generator, settings), class_request([1, 2])
    tokens = policy.sample(request, torch.arange(2)).tokens
    expected = (generator.logits(request, tokens, settings) / 0.7).log_softmax(-1)
    log_probs = policy.log_probs(request, tokens)
    torch.testing.assert_close(log_probs, expected.gather(-1, tokens[..., None])[..., 0], rtol=0, atol=1e-5)
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(policy.entropy(request, tokens), entropy, rtol=0, atol=1e-5)


def test_a_seed_decides_an_image_whatever_the_batch():
    policy = Policy(golden_var("b"), Settings(guidance=1.5, temperature=0.7))
    labels, seeds = [4, 1, 7, 2, 4], torch.tensor([11, 12, 13, 14, 2**62 - 1])
    together = policy.sample(class_request(labels), seeds)
    assert torch.equal(policy.sample(class_request(labels), seeds).tokens, together.tokens)
    for i, label in enumerate(labels):
        alone = policy.sample(class_request([label]), seeds[i : i + 1])
        assert torch.equal(alone.tokens[0], together.tokens[i])
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = policy.sample(class_request([labels[i] for i in order.tolist()]), seeds[order])
    assert torch.equal(shuffled.tokens, together.tokens[order])
    assert not torch.equal(together.tokens[0], together.tokens[4])


@pytest.mark.parametrize("text", [False, True])
def test_a_seed_decides_an_image_whatever_the_batch_and_its_captions(text: bool):
    policy = Policy(tiny_llamagen(text=text, guidance_interval=5), Settings(guidance=1.5, temperature=0.7))
    labels, seeds = [3, 1, 0, 2, 3], torch.tensor([11, 12, 13, 14, 15])
    request = tiny_captions([3, 1, 5, 2], rows=labels) if text else tiny_request(labels)
    together = policy.sample(request, seeds)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(policy.sample(request[order], seeds[order]).tokens, together.tokens[order])
    for i in range(5):
        alone = policy.sample(request[i : i + 1], seeds[i : i + 1])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], rtol=0, atol=1e-5)
    assert not torch.equal(together.tokens[0], together.tokens[4])
    assert together.tokens.unique().numel() > 8


def test_log_probs_have_gradients_and_samples_have_none():
    policy = Policy(tiny_var())
    rollout = policy.sample(tiny_request([0, 1]), torch.arange(2))
    assert not rollout.log_probs.requires_grad
    assert policy.log_probs(rollout.request, rollout.tokens).requires_grad
    assert not policy.decode(rollout.tokens).requires_grad


def test_truncation_restricts_the_support(monkeypatch: pytest.MonkeyPatch):
    generator = golden_var("a")
    request = class_request([0, 1, 2, 3])
    greedy = Policy(generator, Settings(temperature=0.7, top_k=1))
    first = greedy.sample(request, torch.arange(4))
    assert torch.equal(first.tokens, greedy.sample(request, torch.arange(4, 8)).tokens)
    assert torch.equal(first.log_probs, torch.zeros(4, 30))
    assert torch.equal(first.entropy, torch.zeros(4, 30))

    def even(logits: Tensor, top_k: int, top_p: float) -> Tensor:
        assert (top_k, top_p) == (5, 0.5)
        return logits.masked_fill(torch.arange(64) % 2 == 1, -torch.inf)

    monkeypatch.setattr(generator, "filter", even)  # the family's own filter is used
    policy = Policy(generator, Settings(temperature=0.7, top_k=5, top_p=0.5))
    rollout = policy.sample(request, torch.arange(4))
    assert (rollout.tokens % 2 == 0).all()
    assert rollout.tokens.unique().numel() > 10
    # The recorded values are those of the filtered distribution.
    unfiltered = generator.logits(request, rollout.tokens, policy.settings).detach() / 0.7
    logits = even(unfiltered, 5, 0.5).log_softmax(-1)
    expected = logits.gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(rollout.log_probs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, entropy_of(logits), rtol=0, atol=1e-4)
    # Scoring has the same support; tokens outside it are never drawn.
    scored = policy.log_probs(request, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, scored.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, policy.entropy(request, rollout.tokens).detach(), rtol=0, atol=1e-4)
    assert policy.log_probs(request, rollout.tokens + 1).eq(-torch.inf).all()


@pytest.mark.parametrize("settings", [Settings(temperature=0.7, top_k=9), Settings(guidance=1.5, top_p=0.8)], ids=str)
@torch.no_grad()
def test_truncated_samples_equal_recomputed(settings: Settings):
    for policy, request in (
        (Policy(golden_var("a"), settings), class_request([0, 3, 9, 3])),
        (Policy(golden_llamagen("t2i"), settings), llamagen_request("t2i")),
    ):
        rollout = policy.sample(request, torch.tensor([5, 6, 7, 8]))
        log_probs = policy.log_probs(request, rollout.tokens)
        torch.testing.assert_close(rollout.log_probs, log_probs, rtol=0, atol=1e-4)
        torch.testing.assert_close(rollout.entropy, policy.entropy(request, rollout.tokens), rtol=0, atol=1e-4)


@torch.no_grad()
def test_settings_of_each_unit():
    generator, request = golden_var("a"), class_request([0, 3, 9, 3])
    settings = Settings(temperature=(2.0, 1.0, 0.5, 0.25), top_k=(0, 3, 0, 9), top_p=(0.0, 0.0, 0.7, 0.0))
    policy = Policy(generator, settings)
    rollout = policy.sample(request, torch.arange(4))
    logits = generator.logits(request, rollout.tokens, settings)
    parts = list(logits.split(generator.units, dim=1))
    parts = [part / temperature for part, temperature in zip(parts, (2.0, 1.0, 0.5, 0.25), strict=True)]
    parts[1:] = [generator.filter(parts[1], 3), generator.filter(parts[2], 0, 0.7), generator.filter(parts[3], 9)]
    expected = torch.cat(parts, dim=1).log_softmax(-1)
    chosen = expected.gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(rollout.log_probs, chosen, rtol=0, atol=1e-4)
    torch.testing.assert_close(policy.log_probs(request, rollout.tokens), chosen, rtol=0, atol=1e-4)
    torch.testing.assert_close(policy.entropy(request, rollout.tokens), entropy_of(expected), rtol=0, atol=1e-4)
    # A list of equal numbers has the same effect as that number.
    listed = Policy(generator, Settings(temperature=(0.7,) * 4, top_k=(9,) * 4))
    single = Policy(generator, Settings(temperature=0.7, top_k=9))
    assert torch.equal(listed.sample(request, torch.arange(4)).tokens, single.sample(request, torch.arange(4)).tokens)
    for name in ("log_probs", "entropy"):
        ours, theirs = (getattr(policy, name)(request, rollout.tokens) for policy in (listed, single))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("setting", [{"temperature": (1.0, 0.5)}, {"top_k": (1,) * 5}, {"top_p": (0.5,)}])
def test_a_list_has_a_value_for_each_unit(setting: dict):
    (name, values), generator = *setting.items(), golden_var("a")
    with bad_input(name, str(len(values)), "4"):
        Policy(generator, Settings(**setting))


def test_a_policy_without_settings_is_the_model_as_trained():
    assert Policy(tiny_var()).settings == Settings()


def test_the_request_of_words():
    words = tiny_request([3, 0, 3]).words
    request = Policy(tiny_var()).request(words)
    assert request.words is words
    assert isinstance(request.inputs, ClassInputs)
    assert request.inputs.labels.tolist() == [3, 0, 3]


def test_a_wrong_number_of_tokens():
    with bad_input("tokens", "6", "5"):
        Policy(tiny_var()).log_probs(tiny_request([0]), torch.zeros(1, 6, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, (1.0, 0.0)])
def test_temperature_must_be_positive(temperature: float | tuple[float, ...]):
    with bad_input("temperature"):
        Policy(tiny_var(), Settings(temperature=temperature))


def test_drawing_in_parts_is_drawing_at_once():
    policy, request, seeds = Policy(tiny_var()), tiny_request([0, 1, 2, 3, 4]), torch.arange(5)
    images = policy.draw(request, seeds, batch_size=2)
    torch.testing.assert_close(images, policy.decode(policy.sample(request, seeds).tokens), rtol=0, atol=1e-5)


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = torch.tensor([[0.0, 0.2, 0.25, 0.5, 0.7, 0.75, 0.99, 1 - 2**-24]])
    tokens = inverse_cdf(probabilities.expand(1, 8, 5), uniforms)
    assert tokens.tolist() == [[0, 0, 2, 2, 2, 3, 3, 3]]


def test_inverse_cdf_never_leaves_the_support():
    # A zero at the start, zeros at the end, and a sum slightly below 1 due to rounding.
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
    # 11 degrees of freedom: above 31.3 for one seed in a thousand, and in the hundreds for a wrong distribution.
    assert chi_square < 31.3


def test_samples_have_the_frequencies_of_the_first_unit():
    policy = Policy(tiny_var(), Settings(temperature=0.5))
    request = tiny_request([2] * 4000)
    tokens = policy.sample(request, torch.arange(4000)).tokens[:, 0]
    with torch.no_grad():
        state = policy.generator.start(request[:1], policy.settings)
        probabilities = (policy.generator.step(state, None)[0, 0] / 0.5).softmax(-1)
    expected = 4000 * probabilities
    counts = torch.bincount(tokens, minlength=16)
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert chi_square < 37.7  # 15 degrees of freedom, p = 0.001


def test_uniform_numbers():
    numbers = uniform_numbers(torch.tensor([3, 4, 3, 2**62]), 5000)
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # The first numbers do not depend on the count.
    assert torch.equal(uniform_numbers(torch.tensor([4]), 7)[0], numbers[1, :7])
    # Mean 1/2 and variance 1/12, within five standard errors.
    torch.testing.assert_close(numbers[:2].mean(1), torch.full((2,), 0.5), rtol=0, atol=5 * (1 / 12 / 5000) ** 0.5)
    torch.testing.assert_close(numbers[:2].var(1), torch.full((2,), 1 / 12), rtol=0, atol=5 * (1 / 180 / 5000) ** 0.5)
    with bad_input("seeds", "-1"):
        uniform_numbers(torch.tensor([0, -1]), 5)


def test_entropy_by_hand():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]]).log()
    expected = torch.tensor([[math.log(2), math.log(4), 0.0]])
    torch.testing.assert_close(entropy_of(log_probs), expected, rtol=0, atol=1e-6)


def test_drawing_does_without_attention_plans():
    policy, seen = Policy(tiny_llamagen()), []
    step = policy.generator.step
    policy.generator.step = lambda *given: (  # pyright: ignore[reportAttributeAccessIssue]
        seen.append(torch.backends.cuda.cudnn_sdp_enabled()),
        step(*given),
    )[1]
    policy.sample(tiny_request([0]), torch.arange(1))
    assert seen == [False] * 9
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_policy_describes_itself():
    assert repr(Policy(tiny_var(), Settings(guidance=1.5))).startswith("Policy(var, 0.0 million parameters, ")


def test_the_version_is_that_of_the_package():
    import importlib.metadata

    import sfumato

    assert sfumato.__version__ == importlib.metadata.version("sfumato")


def test_draw_in_one_call():
    policy = Policy(tiny_var(), Settings(temperature=0.7))
    first, second = policy.generator.card.class_names[:2]
    by_hand = policy.draw(class_request([0, 0, 0, 1, 1, 1]), torch.arange(5, 11))
    torch.testing.assert_close(policy.draw([first, second], n=3, seed=5), by_hand, rtol=0, atol=0)
    torch.testing.assert_close(policy.draw("0-1", n=3, seed=5), by_hand, rtol=0, atol=0)
    torch.testing.assert_close(policy.draw(0, n=3, seed=5), by_hand[:3], rtol=0, atol=0)
    words = policy.request([first, second]).words
    assert words.names == (first, second)
    torch.testing.assert_close(policy.draw(words, n=3, seed=5), by_hand, rtol=0, atol=0)
    with bad_input("classes", "'no such class'"):
        policy.draw("no such class")
    with bad_input("n", "0"):
        policy.draw(first, n=0)


@dataclass(frozen=True)
class CountsLetters:
    """The tiny generator, with captions in place of classes: the class is the length of the caption."""

    base: VAR
    card = Card()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def inputs(self, words: Words) -> ClassInputs:
        return ClassInputs(labels=torch.tensor([len(name) for name in words.names]))


def test_draw_a_caption():
    base = tiny_var()
    policy: Any = Policy(CountsLetters(base))  # pyright: ignore[reportArgumentType]
    expected = Policy(base).draw(class_request([3, 3, 1]), torch.tensor([0, 1, 0]))
    torch.testing.assert_close(policy.draw("red", n=2), expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.draw(["x"]), expected[2:], rtol=0, atol=1e-5)
    with bad_input("captions", "3"):
        policy.draw(3)
