"""Properties of VAR that hold for any weights: causality, guidance, decoding state, filter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from errors import bad_input
from golden_data import golden_var, outputs
from tiny import CLASS_NAMES, TOKENIZER, tiny_request, tiny_var
from torch import Tensor

from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig, VARTransformer, attend
from sfumato.families.vqvae import MultiScaleVQVAE
from sfumato.policy import Card, Generator
from sfumato.request import Request, Words
from sfumato.settings import PerUnit, Settings
from sfumato.testing import class_request

PLAIN, GUIDED = Settings(), Settings(guidance=1.5)


def decoded(generator: VAR, request: Request, tokens: Tensor, settings: Settings) -> Tensor:
    """Return the logits of these tokens, computed step by step."""
    state = generator.start(request, settings)
    units = [None, *tokens.split(generator.units, dim=1)[:-1]]
    return torch.cat([generator.step(state, unit) for unit in units], dim=1)


@pytest.mark.parametrize("variant", ["a", "b"])
@torch.no_grad()
def test_causality(variant: str):
    generator, golden = golden_var(variant), outputs(variant)
    request, tokens = class_request(golden["labels"]), golden["idx"]
    logits = generator.logits(request, tokens, GUIDED)
    first = 0
    for scale, unit in enumerate(generator.units):
        changed = tokens.clone()
        changed[:, first : first + unit] = (tokens[:, first : first + unit] + 1) % 64
        difference = (generator.logits(request, changed, GUIDED) - logits).abs().amax((0, 2))
        first += unit
        # The change leaves scales up to and including the changed one bit-identical.
        assert difference[:first].max() == 0, scale
        # It affects all positions of all later scales.
        assert first == len(difference) or difference[first:].min() > 1e-4, scale


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4, 6)])
def test_attention_span_by_span_is_attention_under_the_mask(scales: tuple[int, ...]):
    transformer = VARTransformer(VARConfig(depth=1, width=8, num_heads=2), scales, vocab_size=4, latent_channels=2)
    query, key, value, weight = torch.randn(4, 2, 2, sum(transformer.units), 4, dtype=torch.float64).unbind()
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    in_spans = attend(query, key, value, transformer.spans(), softmax_scale=0.7)
    masked = F.scaled_dot_product_attention(query, key, value, attn_mask=transformer.mask, scale=0.7)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (in_spans, masked)]
    torch.testing.assert_close(in_spans, masked, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@torch.no_grad()
def test_every_label_and_code_counts():
    generator = tiny_var()
    tokens = torch.zeros(5, 5, dtype=torch.int64)
    logits = generator.logits(tiny_request(range(5)), tokens, PLAIN)
    assert all((logits[i] - logits[j]).abs().max() > 1e-3 for i in range(5) for j in range(i))


@pytest.mark.parametrize(("guidance", "rows"), [(None, 3), (0.0, 3), (1.5, 6), ((0.0, 1.5), 6)])
@torch.no_grad()
def test_the_unconditional_half_is_computed_only_with_guidance(guidance: PerUnit | None, rows: int):
    generator, settings = tiny_var(), Settings(guidance=guidance)
    block, seen = generator.network.blocks[0], []
    block.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    request, tokens = tiny_request([0, 1, 2]), torch.zeros(3, 5, dtype=torch.int64)
    generator.logits(request, tokens, settings)
    state = generator.start(request, settings)
    generator.step(state, None)
    generator.step(state, tokens[:, :1])
    assert seen == [rows, rows, rows]
    assert state.features.shape[0] == 3


@torch.no_grad()
def test_guidance_by_hand():
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    conditional = tiny_var().logits(tiny_request([3, 1]), tokens, PLAIN)
    unconditional = tiny_var().logits(tiny_request([5, 5]), tokens, PLAIN)
    guided = tiny_var().logits(tiny_request([3, 1]), tokens, Settings(guidance=2.0))
    # With two scales, the first is never guided, and the last has full strength.
    torch.testing.assert_close(guided[:, :1], conditional[:, :1], rtol=0, atol=1e-6)
    expected = 3 * conditional[:, 1:] - 2 * unconditional[:, 1:]
    torch.testing.assert_close(guided[:, 1:], expected, rtol=0, atol=1e-5)
    assert (guided - conditional)[:, 1:].abs().max() > 0.1


@pytest.mark.parametrize("variant", ["a", "b", "c"])
@torch.no_grad()
def test_a_list_equal_to_the_ramp_is_the_number(variant: str):
    generator, golden = golden_var(variant), outputs(variant)
    request, tokens, scales = class_request(golden["labels"]), golden["idx"], len(generator.units)
    ramp = Settings(guidance=tuple(1.5 * scale / (scales - 1) for scale in range(scales)))
    expected = generator.logits(request, tokens, GUIDED)
    assert torch.equal(generator.logits(request, tokens, ramp), expected)
    assert torch.equal(decoded(generator, request, tokens, ramp), decoded(generator, request, tokens, GUIDED))
    # Only the last scale has full strength, so a constant list gives another result.
    constant = generator.logits(request, tokens, Settings(guidance=(1.5,) * scales))
    difference = (constant - expected).abs().amax((0, 2))
    assert difference[: -generator.units[-1]].min() > 1e-4
    assert difference[-generator.units[-1] :].max() == 0


@torch.no_grad()
def test_a_strength_for_each_scale_by_hand():
    generator, tokens = golden_var("a"), outputs("a")["idx"]
    request = class_request(outputs("a")["labels"])
    nothing = class_request([generator.config.num_classes] * len(request))
    conditional, unconditional = (generator.logits(asked, tokens, PLAIN) for asked in (request, nothing))
    strengths = (2.0, 0.0, 0.5, 1.0)
    settings = Settings(guidance=strengths)
    spread = torch.tensor(strengths).repeat_interleave(torch.tensor(generator.units))[:, None]
    expected = (1 + spread) * conditional - spread * unconditional
    torch.testing.assert_close(generator.logits(request, tokens, settings), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded(generator, request, tokens, settings), expected, rtol=0, atol=1e-4)


def test_a_list_of_guidance_has_a_strength_for_each_scale():
    generator, settings = tiny_var(), Settings(guidance=(1.0, 2.0, 3.0))
    with bad_input("guidance", "3", "2"):
        generator.start(tiny_request([0]), settings)
    with bad_input("guidance", "3", "2"):
        generator.logits(tiny_request([0]), torch.zeros(1, 5, dtype=torch.int64), settings)


@torch.no_grad()
def test_dropped_classes_are_the_null_class():
    generator, request, tokens = tiny_var(), tiny_request([3, 1, 2]), torch.arange(15).view(3, 5)
    inputs = generator.inputs(request.words)
    mixed = inputs.drop(torch.tensor([False, True, False]))
    for settings in (PLAIN, GUIDED):
        expected = generator.logits(tiny_request([3, 5, 2]), tokens, settings)
        torch.testing.assert_close(generator.logits(mixed, tokens, settings), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            decoded(generator, Request(words=request.words, inputs=mixed), tokens, settings),
            expected,
            rtol=0,
            atol=1e-4,
        )
        assert (generator.logits(inputs, tokens, settings) - expected)[1].abs().max() > 1e-3


def test_inputs_are_the_classes_asked_for():
    generator = tiny_var()
    assert generator.inputs(tiny_request([4, 0]).words).labels.tolist() == [4, 0]
    for label, name in ((5, "null"), (-1, "a cat")):
        with bad_input("classes", repr(name), str(label), "0 to 4"):
            generator.inputs(Words(names=("ant", name), labels=torch.tensor([0, label])))


@torch.no_grad()
def test_another_network_in_the_same_generator():
    generator, other, tokens = tiny_var(), tiny_var(seed=1), torch.tensor([[1, 2, 3, 4, 5]])
    before = generator.network
    expected, theirs = (g.logits(tiny_request([2]), tokens, GUIDED) for g in (generator, other))
    twin = generator.with_network(other.network)
    assert isinstance(twin, VAR)
    assert twin.network is other.network
    assert (twin.tokenizer, twin.card, twin.units) == (generator.tokenizer, generator.card, generator.units)
    # It reads codes of the first generator's tokenizer.
    mixed = twin.logits(tiny_request([2]), tokens, GUIDED)
    torch.testing.assert_close(mixed[:, :1], theirs[:, :1], rtol=0, atol=1e-6)
    assert (mixed - expected).abs().max() > 0.1
    torch.testing.assert_close(decoded(twin, tiny_request([2]), tokens, GUIDED), mixed, rtol=0, atol=1e-4)
    # The original is unchanged, even after the twin changes.
    twin.card = Card(family="other")
    assert generator.network is before
    assert generator.card.family == "var"
    assert torch.equal(generator.logits(tiny_request([2]), tokens, GUIDED), expected)
    assert generator.state_dict().keys() == twin.state_dict().keys()


def test_step_wants_its_tokens_in_turn():
    generator = tiny_var()
    state = generator.start(tiny_request([0]), PLAIN)
    with pytest.raises(ValueError, match=r"^drawn: "):
        generator.step(state, torch.zeros(1, 1, dtype=torch.int64))
    generator.step(state, None)
    with pytest.raises(ValueError, match=r"^drawn: "):
        generator.step(state, None)
    generator.step(state, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^step: .*2 scales"):
        generator.step(state, torch.zeros(1, 4, dtype=torch.int64))


def test_only_the_transformer_learns():
    generator = tiny_var()
    assert isinstance(generator, Generator)
    generator.train()
    generator.logits(tiny_request([0, 5]), torch.zeros(2, 5, dtype=torch.int64), PLAIN).square().mean().backward()
    assert all(p.grad is None for p in generator.tokenizer.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.network.parameters())


@torch.no_grad()
def test_train_and_eval_are_the_same():
    # The forward pass drops no labels, and there is no dropout.
    generator, request = tiny_var(), tiny_request([0, 1, 2, 3] * 8)
    tokens = torch.zeros(32, 5, dtype=torch.int64)
    assert torch.equal(
        generator.train().logits(request, tokens, PLAIN), generator.eval().logits(request, tokens, PLAIN)
    )


def test_config_errors():
    with bad_input("num_heads", "3", "16"):
        VARConfig(width=16, num_heads=3)
    with bad_input("class_names", "5", "4"):
        VAR(
            VARConfig(depth=1, width=16, num_heads=2, num_classes=4),
            MultiScaleVQVAE(TOKENIZER),
            Card(class_names=CLASS_NAMES),
        )


def test_classes_without_names_are_numbered():
    config = VARConfig(depth=1, width=16, num_heads=2, num_classes=3)
    assert VAR(config, MultiScaleVQVAE(TOKENIZER)).card == Card(family="var", class_names=("0", "1", "2"))


def test_decode_of_certain_distributions_is_that_of_tokens():
    generator, tokens = tiny_var(), torch.tensor([[1, 2, 3, 4, 5]])
    images = generator.decode(tokens)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1
    certain = torch.nn.functional.one_hot(tokens, 16).float()
    torch.testing.assert_close(generator.decode(certain), images, rtol=0, atol=1e-5)


def test_smooth_samples_depend_on_the_seed_alone():
    generator = tiny_var()
    request = tiny_request([0, 1, 2])
    images = generator.sample_smooth(request, torch.tensor([3, 4, 5]), GUIDED)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(generator.sample_smooth(request, torch.tensor([3, 4, 5]), GUIDED), images)
    inputs = generator.inputs(request.words)
    assert torch.equal(generator.sample_smooth(inputs, torch.tensor([3, 4, 5]), GUIDED), images)
    alone = generator.sample_smooth(request[1:2], torch.tensor([4]), GUIDED)
    torch.testing.assert_close(alone[0], images[1], rtol=0, atol=1e-5)
    other = generator.sample_smooth(request[1:2], torch.tensor([6]), GUIDED)
    assert (other[0] - images[1]).abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 0.4, (0.4, 2.0)])
def test_smooth_samples_by_hand(temperature: PerUnit, monkeypatch: pytest.MonkeyPatch):
    generator, request, seen = tiny_var(), tiny_request([3]), []
    decode = generator.decode
    monkeypatch.setattr(generator, "decode", lambda weights: (seen.append(weights), decode(weights))[1])
    generator.sample_smooth(request, torch.tensor([5]), Settings(temperature=temperature))
    coarse, fine = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    rng, state = np.random.default_rng(5), generator.start(request, PLAIN)
    # With two scales, the first has progress 0 and the last 1: temperatures 0.27 and 0.05 · 0.27.
    first = generator.step(state, None).detach() / coarse
    first = ((first + torch.from_numpy(rng.gumbel(size=(1, 16)))) / 0.27).softmax(-1).float()
    last = generator.step(state, first).detach() / fine
    last = ((2 * last + torch.from_numpy(rng.gumbel(size=(4, 16)))) / 0.0135).softmax(-1).float()
    torch.testing.assert_close(seen[0], torch.cat([first, last], dim=1), rtol=0, atol=1e-4)
    assert first.max() < 0.999


def test_smooth_samples_of_one_allowed_token_are_its_image(monkeypatch: pytest.MonkeyPatch):
    generator = tiny_var()

    def only_seven(logits: Tensor, top_k: int, top_p: float) -> Tensor:
        assert (top_k, top_p) == (9, 0.5)
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor([7]), 0.0)

    monkeypatch.setattr(generator, "filter", only_seven)
    images = generator.sample_smooth(tiny_request([0]), torch.tensor([0]), Settings(top_k=9, top_p=0.5))
    torch.testing.assert_close(images, generator.decode(torch.full((1, 5), 7)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_smooth_samples_are_truncated_at_each_scale():
    generator, request, seeds = tiny_var(), tiny_request([0] * 8), torch.arange(8)
    state = generator.start(request, PLAIN)
    first = generator.step(state, None).argmax(-1)
    last = generator.step(state, first).argmax(-1)
    greedy = generator.decode(torch.cat([first, last], dim=1))
    images = generator.sample_smooth(request, seeds, Settings(top_k=1))
    torch.testing.assert_close(images, greedy, rtol=0, atol=1e-5)
    assert (images - images[0]).abs().max() < 1e-5
    for settings in (Settings(top_k=(1, 0)), Settings(top_k=(0, 1))):
        assert (generator.sample_smooth(request, seeds, settings) - greedy).abs().max() > 1e-3


def test_top_k_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert VAR.filter(logits, top_k=1).isfinite().tolist() == [[False, True, False, False, False]]
    # The two tokens that tie for second place are both kept.
    assert VAR.filter(logits, top_k=2).isfinite().tolist() == [[False, True, True, True, False]]
    assert torch.equal(VAR.filter(logits, top_k=99), logits)
    assert torch.equal(VAR.filter(logits), logits)


def test_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log()
    kept = {p: VAR.filter(logits, top_p=p).isfinite().tolist()[0] for p in (1e-9, 0.1, 0.4, 0.7, 0.8, 1.0)}
    # The least likely tokens are removed while they add up to at most 1 - p; the most likely one is always kept.
    assert kept[1e-9] == [True, False, False, False]
    assert kept[0.1] == [True, False, False, False]
    assert kept[0.4] == [True, False, False, False]
    assert kept[0.7] == [True, False, True, False]
    assert sum(kept[0.8]) == 3
    assert kept[1.0] == [True] * 4


def test_filter_keeps_the_likeliest_and_changes_nothing_that_stays():
    logits = torch.randn(6, 7, 30, generator=torch.Generator().manual_seed(0)) * 3
    for top_k, top_p in ((1, 0.0), (5, 0.0), (0, 0.3), (0, 0.95), (8, 0.5)):
        filtered = VAR.filter(logits, top_k, top_p)
        stays = filtered.isfinite()
        assert torch.equal(filtered[stays], logits[stays])
        assert torch.equal(filtered.argmax(-1), logits.argmax(-1))
        assert top_k == 0 or stays.sum(-1).max() <= top_k
        assert logits.where(stays, torch.inf).amin(-1).ge(logits.where(~stays, -torch.inf).amax(-1)).all()
    mass = logits.softmax(-1).where(VAR.filter(logits, top_p=0.8).isfinite(), 0.0).sum(-1)
    assert mass.min() >= 0.8 - 1e-6
