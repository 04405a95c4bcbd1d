"""Infinity as a policy over bits: captions of different lengths, guidance, prefixes, forks and bad inputs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import BSQ_TOKENIZER, INFINITY, tiny_captions, tiny_infinity, tiny_request
from torch import Tensor, nn

from sfumato.capabilities import Forks, ReducesLogits, ScoresPrefixes
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import InfinityConfig, InfinityTransformer
from sfumato.families.infinity.schedules import schedule
from sfumato.families.infinity.tokenizer import BSQConfig, BSQTokenizer
from sfumato.families.library import load_model, save_model
from sfumato.policy import Generator, Policy
from sfumato.request import Request
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import ReadsCaptions

SETTINGS = {
    "plain": PLAIN,
    "guided": Settings(guidance=3.0, temperature=0.7),
    "by scale": Settings(guidance=(2.0, 1.0, 4.0), temperature=(1.0, 0.7, 0.5)),
}
LENGTHS = (2, 5, 1)


@pytest.fixture(scope="module")
def generator() -> Infinity:
    return tiny_infinity()


def bits(count: int, seed: int = 3) -> Tensor:
    return torch.randint(2, (count, 42), generator=torch.Generator().manual_seed(seed))


def test_protocols(generator: Infinity):
    for protocol in (Generator, ReducesLogits, ScoresPrefixes, Forks, ReadsCaptions):
        assert isinstance(generator, protocol)
    assert generator.units == (3, 12, 27)
    assert generator.tokenizer.config.image_size == (12, 12)


@pytest.mark.parametrize("name", SETTINGS)
def test_sampled_log_probabilities_are_the_scored_ones(generator: Infinity, name: str):
    policy, request = Policy(generator, SETTINGS[name]), tiny_captions(LENGTHS, rows=[0, 1, 1, 2])
    rollout = policy.sample(request, torch.arange(4))
    with torch.no_grad():
        scored = policy.log_probs(request, rollout.tokens)
        entropy = policy.entropy(request, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, scored, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, entropy, rtol=0, atol=1e-4)
    assert set(rollout.tokens.unique().tolist()) == {0, 1}
    assert not torch.equal(rollout.tokens[1], rollout.tokens[2])
    assert policy.decode(rollout.tokens).shape == (4, 3, 12, 12)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_captions_of_different_lengths_are_as_one_at_a_time(generator: Infinity, name: str):
    request, tokens, policy = tiny_captions(LENGTHS), bits(3), Policy(generator, SETTINGS[name])
    together, drawn = policy.log_probs(request, tokens), policy.sample(request, torch.arange(3)).tokens
    for number, length in enumerate(LENGTHS):
        text = request.inputs.captions  # pyright: ignore[reportAttributeAccessIssue]
        table = replace(
            text, features=text.features[number : number + 1, -length:], mask=text.mask[number, -length:][None]
        )
        alone = Request(words=request.words[:1], inputs=replace(request.inputs, rows=torch.tensor([0]), captions=table))  # pyright: ignore
        torch.testing.assert_close(policy.log_probs(alone, tokens[[number]])[0], together[number], rtol=0, atol=1e-5)
        assert torch.equal(policy.sample(alone, torch.tensor([number])).tokens[0], drawn[number])


@torch.no_grad()
def test_guidance_is_linear_in_the_difference_of_the_logits(generator: Infinity):
    request, tokens = tiny_captions(LENGTHS), bits(3)
    null = Request(words=request.words, inputs=request.inputs.drop(torch.ones(3, dtype=torch.bool)))
    conditional, unconditional = (generator.logits(asked, tokens).diff(dim=-1) for asked in (request, null))
    guided = generator.logits(request, tokens, Settings(guidance=3.0)).diff(dim=-1)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), rtol=0, atol=1e-5)
    listed = generator.logits(request, tokens, Settings(guidance=(3.0, 1.0, 1.0))).diff(dim=-1)
    torch.testing.assert_close(listed[:, :3], guided[:, :3], rtol=0, atol=1e-6)
    torch.testing.assert_close(listed[:, 3:], conditional[:, 3:], rtol=0, atol=1e-5)
    # The unconditional distribution depends on the length of the caption, and on nothing else in it.
    other = Request(words=request.words[:2], inputs=replace(request.inputs, rows=torch.tensor([0, 1])))  # pyright: ignore
    other = Request(words=other.words, inputs=other.inputs.drop(torch.ones(2, dtype=torch.bool)))
    same = bits(1).expand(2, -1)
    first, second = generator.logits(other, same)
    assert (first - second).abs().max() > 0.01
    with torch.no_grad():
        changed = tiny_captions(LENGTHS)
        changed.inputs.captions.features.mul_(-2)  # pyright: ignore[reportAttributeAccessIssue]
    changed = Request(words=changed.words, inputs=changed.inputs.drop(torch.ones(3, dtype=torch.bool)))
    assert torch.equal(generator.logits(changed, tokens).diff(dim=-1), unconditional)


def test_no_guidance_computes_no_unconditional_half(generator: Infinity, monkeypatch: pytest.MonkeyPatch):
    rows: list[int] = []
    handle = generator.network.blocks[0].register_forward_hook(lambda _, inputs, out: rows.append(len(out)))
    for guidance in (None, 1.0, (1.0, 1.0, 1.0), 2.0):
        generator.logits(tiny_captions(LENGTHS), bits(3), Settings(guidance=guidance))
    handle.remove()
    assert rows == [3, 3, 3, 6]


def test_each_caption_is_read_once(generator: Infinity):
    read: list[int] = []
    handle = generator.network.text_in.register_forward_hook(lambda _, inputs, out: read.append(len(out)))
    policy = Policy(generator, Settings(guidance=2.0))
    policy.sample(tiny_captions(LENGTHS, rows=[1] * 5 + [2]), torch.arange(6))
    handle.remove()
    assert read == [4]  # two captions, and no caption of both lengths; once for all scales


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_the_first_scales_alone(generator: Infinity, name: str):
    request, tokens, policy = tiny_captions(LENGTHS), bits(3), Policy(generator, SETTINGS[name])
    whole = policy.log_probs(request, tokens)
    for count in (1, 2):
        units = generator.units[:count]
        part = policy.log_probs(request, tokens[:, : sum(units)], units)
        torch.testing.assert_close(part, whole[:, : sum(units)], rtol=0, atol=1e-5)


def test_scoring_some_positions_at_a_time(generator: Infinity):
    request, tokens, settings = tiny_captions(LENGTHS), bits(3), SETTINGS["by scale"]
    results = []
    for positions in (0, 1, 10, 1000):
        generator.zero_grad()
        log_probs = Policy(generator, settings, positions).log_probs(request, tokens)
        log_probs.square().sum().backward()
        gradient = generator.network.head.weight.grad
        assert gradient is not None
        results.append((log_probs.detach(), gradient.clone()))
    for log_probs, gradient in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-4)
    generator.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_fork_goes_on_as_its_origin(generator: Infinity, guidance: float | None):
    settings, tokens = Settings(guidance=guidance), bits(2)
    request = tiny_captions(LENGTHS, rows=[0, 2])
    parts = tokens.split(generator.units, dim=1)
    state = generator.start(request, settings)
    generator.step(state, None)
    fork = generator.fork(state, 3)
    copied = generator.step(fork, parts[0].repeat_interleave(3, dim=0))
    expected = generator.step(state, parts[0])
    torch.testing.assert_close(copied, expected.repeat_interleave(3, dim=0), rtol=0, atol=1e-5)
    again = generator.step(fork, parts[1].repeat_interleave(3, dim=0))
    torch.testing.assert_close(again[::3], generator.step(state, parts[1]), rtol=0, atol=1e-5)


def test_nucleus_of_a_bit():
    logits = torch.tensor([[0.98, 0.02], [0.96, 0.04], [0.01, 0.99]]).log()
    kept = Infinity.filter(logits, top_p=0.97).softmax(-1)
    torch.testing.assert_close(kept, torch.tensor([[1, 0], [0.96, 0.04], [0, 1]]))
    assert torch.equal(Infinity.filter(logits, top_k=900), logits)
    assert torch.equal(Infinity.filter(logits, top_k=1).isfinite().sum(-1), torch.tensor([1, 1, 1]))


@torch.no_grad()
def test_encoding_is_the_reverse_of_decoding_for_features(generator: Infinity):
    """The bits of a feature map that bits made: the residual of the last scale is reproduced exactly."""
    tokenizer = generator.tokenizer
    features = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    units, accumulated = tokenizer.quantize(features)
    made = sum(tokenizer.upsample(scale, unit) for scale, unit in enumerate(units))
    torch.testing.assert_close(made, accumulated[-1])
    # A component of exactly 0 is bit 0.
    assert not tokenizer.quantize(torch.zeros(1, 3, 3, 3))[0][0].any()
    with bad_input("images", "12×12", "(1, 3, 8, 12)"):
        generator.encode(torch.zeros(1, 3, 8, 12))


@torch.no_grad()
@pytest.mark.parametrize("scales", [schedule("0.75", 4), ((1, 1), (2, 1), (4, 3))])
def test_other_schedules(scales: tuple[tuple[int, int], ...], tmp_path: Path):
    shape = replace(BSQ_TOKENIZER, scales=scales, token_patch=2)
    config = replace(INFINITY, rotary_grid=(8, 6), text_encoder="word-vectors", caption_width=64)
    generator = Infinity(config, BSQTokenizer(shape)).eval()
    for parameter in generator.network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(tmp_path, generator)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Infinity)
    assert (loaded.config, loaded.tokenizer.config) == (config, shape)
    policy = Policy(loaded.eval(), Settings(guidance=2.0))
    request = policy.request(["a cat", "the old red dog"])
    rollout = policy.sample(request, torch.arange(2))
    assert rollout.tokens.shape == (2, sum(h * w for h, w in scales) * 12)
    height, width = scales[-1]
    assert policy.decode(rollout.tokens).shape == (2, 3, height * 8, width * 8)
    again = Policy(generator, Settings(guidance=2.0)).log_probs(request, rollout.tokens)
    torch.testing.assert_close(again, rollout.log_probs, rtol=0, atol=1e-4)


def test_initial_weights():
    """A new model is close to uniform, and all of its parts learn."""
    torch.manual_seed(0)
    generator = Infinity(INFINITY, BSQTokenizer(BSQ_TOKENIZER))
    policy = Policy(generator, Settings(guidance=2.0))
    log_probs = policy.log_probs(tiny_captions(LENGTHS), bits(3))
    assert (log_probs + torch.tensor(2.0).log()).abs().max() < 0.1
    log_probs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.network.parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "field", "pieces"),
    [
        (InfinityConfig, {"num_heads": 7}, "num_heads", ("7", "768")),
        (InfinityConfig, {"block_chunks": 5}, "block_chunks", ("5", "12")),
        (InfinityConfig, {"depth": 0}, "depth", ("0",)),
        (BSQConfig, {"scales": ((1, 0),)}, "scales", ("(1, 0)",)),
        (BSQConfig, {"norm_groups": 3}, "norm_groups", ("3", "128")),
    ],
)
def test_impossible_shapes(kind: type, changes: dict, field: str, pieces: Sequence[str]):
    with bad_input(field, *pieces):
        kind(**changes)


def test_impossible_schedules():
    with bad_input("ratio", "'1'", "0.333", "3.0"):
        schedule("1")
    with bad_input("count", "14"):
        schedule("1.0", 14)
    with bad_input("num_levels", "2", "3"):
        InfinityTransformer(replace(INFINITY, num_levels=2), BSQ_TOKENIZER.scales, 3)


def test_inputs_of_another_kind(generator: Infinity):
    with bad_input("inputs", "captions", "ClassInputs"):
        generator.start(tiny_request([0]))  # pyright: ignore[reportArgumentType]
    with bad_input("text", "(1, 6, 6)", "5"):
        generator.start(tiny_captions([6]))
    with bad_input("tokens", "42", "41"):
        generator.logits(tiny_captions([1]), bits(1)[:, :41])
    state = generator.start(tiny_captions([1]))
    with pytest.raises(ValueError, match="drawn: give None at the first"):
        generator.step(state, bits(1)[:, :3])
    for drawn in (None, *bits(1).split(generator.units, dim=1)[:2]):
        generator.step(state, drawn)
    with pytest.raises(ValueError, match="all 3 scales"):
        generator.step(state, bits(1)[:, -27:])


def test_layers_of_adapters_are_in_blocks(generator: Infinity):
    from sfumato.families import FAMILIES

    targets = FAMILIES["infinity"].lora_targets
    linear = [name for name, module in generator.network.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if name.rpartition(".")[2] in targets]
    assert len(chosen) == 2 * 7
    assert chosen == [name for name in linear if name.startswith("blocks.")]
