"""Properties of VAR that hold for any weights: causality, guidance, decoding state, filter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_data import golden_var, outputs
from tiny import CLASS_NAMES, TOKENIZER, tiny_conditions, tiny_var
from torch import Tensor

from sfumato.families.var.generator import VAR, sample_smooth
from sfumato.families.var.network import VARConfig, VARTransformer, attend
from sfumato.families.var.tokenizer import MultiScaleVQVAE
from sfumato.policy import Generator
from sfumato.rollout import Conditions


def numbered(labels: Tensor) -> Conditions:
    return Conditions(labels=labels, names=tuple(map(str, labels.tolist())))


@pytest.mark.parametrize("variant", ["a", "b"])
@torch.no_grad()
def test_causality(variant: str):
    generator, golden = golden_var(variant, guidance=1.5), outputs(variant)
    conditions, tokens = numbered(golden["labels"]), golden["idx"]
    logits = generator.logits(conditions, tokens)
    first = 0
    for scale, unit in enumerate(generator.units):
        changed = tokens.clone()
        changed[:, first : first + unit] = (tokens[:, first : first + unit] + 1) % 64
        difference = (generator.logits(conditions, changed) - logits).abs().amax((0, 2))
        first += unit
        # Scales up to and with the changed one see nothing of the change: not a bit.
        assert difference[:first].max() == 0, scale
        # All positions of all later scales do.
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
    logits = generator.logits(tiny_conditions(range(5)), tokens)
    assert all((logits[i] - logits[j]).abs().max() > 1e-3 for i in range(5) for j in range(i))


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 3), (1.5, 6)])
@torch.no_grad()
def test_the_unconditional_half_is_computed_only_with_guidance(guidance: float, rows: int):
    generator = tiny_var(guidance=guidance)
    block, seen = generator.transformer.blocks[0], []
    block.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    conditions, tokens = tiny_conditions([0, 1, 2]), torch.zeros(3, 5, dtype=torch.int64)
    generator.logits(conditions, tokens)
    state = generator.start(conditions)
    generator.step(state, None)
    generator.step(state, tokens[:, :1])
    assert seen == [rows, rows, rows]
    assert state.features.shape[0] == 3


@torch.no_grad()
def test_guidance_by_hand():
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    conditional = tiny_var().logits(tiny_conditions([3, 1]), tokens)
    unconditional = tiny_var().logits(tiny_conditions([5, 5]), tokens)
    guided = tiny_var(guidance=2.0).logits(tiny_conditions([3, 1]), tokens)
    # Two scales: the first is never guided, the last has the whole strength.
    torch.testing.assert_close(guided[:, :1], conditional[:, :1], rtol=0, atol=1e-6)
    expected = 3 * conditional[:, 1:] - 2 * unconditional[:, 1:]
    torch.testing.assert_close(guided[:, 1:], expected, rtol=0, atol=1e-5)
    assert (guided - conditional)[:, 1:].abs().max() > 0.1


def test_step_wants_its_tokens_in_turn():
    generator = tiny_var()
    state = generator.start(tiny_conditions([0]))
    with pytest.raises(ValueError, match="unit_tokens: give None at the first scale"):
        generator.step(state, torch.zeros(1, 1, dtype=torch.int64))
    generator.step(state, None)
    with pytest.raises(ValueError, match="unit_tokens: give None at the first scale"):
        generator.step(state, None)
    generator.step(state, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="step: all 2 scales are drawn"):
        generator.step(state, torch.zeros(1, 4, dtype=torch.int64))


def test_only_the_transformer_learns():
    generator = tiny_var()
    assert isinstance(generator, Generator)
    generator.train()
    generator.logits(tiny_conditions([0, 5]), torch.zeros(2, 5, dtype=torch.int64)).square().mean().backward()
    assert all(p.grad is None for p in generator.tokenizer.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.transformer.parameters())


@torch.no_grad()
def test_train_and_eval_are_the_same():
    # No label is dropped inside the forward pass, and there is no dropout.
    generator, conditions = tiny_var(), tiny_conditions([0, 1, 2, 3] * 8)
    tokens = torch.zeros(32, 5, dtype=torch.int64)
    assert torch.equal(generator.train().logits(conditions, tokens), generator.eval().logits(conditions, tokens))


def test_config_errors():
    with pytest.raises(ValueError, match="num_heads: 3 does not divide the width 16"):
        VARConfig(width=16, num_heads=3)
    with pytest.raises(ValueError, match="class_names: 5 names for 4 classes"):
        VAR(VARConfig(depth=1, width=16, num_heads=2, num_classes=4), MultiScaleVQVAE(TOKENIZER), CLASS_NAMES)


def test_decode_of_certain_distributions_is_that_of_tokens():
    generator, tokens = tiny_var(), torch.tensor([[1, 2, 3, 4, 5]])
    images = generator.decode(tokens)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1
    certain = torch.nn.functional.one_hot(tokens, 16).float()
    torch.testing.assert_close(generator.decode(certain), images, rtol=0, atol=1e-5)


def test_smooth_samples_depend_on_the_seed_alone():
    generator = tiny_var(guidance=1.5)
    conditions = tiny_conditions([0, 1, 2])
    images = sample_smooth(generator, conditions, torch.tensor([3, 4, 5]))
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(sample_smooth(generator, conditions, torch.tensor([3, 4, 5])), images)
    alone = sample_smooth(generator, conditions[1:2], torch.tensor([4]))
    torch.testing.assert_close(alone[0], images[1], rtol=0, atol=1e-5)
    other = sample_smooth(generator, conditions[1:2], torch.tensor([6]))
    assert (other[0] - images[1]).abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_smooth_samples_by_hand(temperature: float, monkeypatch: pytest.MonkeyPatch):
    generator, conditions, seen = tiny_var(), tiny_conditions([3]), []
    decode = generator.decode
    monkeypatch.setattr(generator, "decode", lambda weights: (seen.append(weights), decode(weights))[1])
    sample_smooth(generator, conditions, torch.tensor([5]), temperature=temperature)
    rng, state = np.random.default_rng(5), generator.start(conditions)
    # Of two scales the first has progress 0 and the last 1: temperatures 0.27 and 0.05 · 0.27.
    first = generator.step(state, None).detach() / temperature
    first = ((first + torch.from_numpy(rng.gumbel(size=(1, 16)))) / 0.27).softmax(-1).float()
    last = generator.step(state, first).detach() / temperature
    last = ((2 * last + torch.from_numpy(rng.gumbel(size=(4, 16)))) / 0.0135).softmax(-1).float()
    torch.testing.assert_close(seen[0], torch.cat([first, last], dim=1), rtol=0, atol=1e-4)
    assert first.max() < 0.999


def test_smooth_samples_of_one_allowed_token_are_its_image():
    generator = tiny_var()

    def only_seven(logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor([7]), 0.0)

    images = sample_smooth(generator, tiny_conditions([0]), torch.tensor([0]), only_seven)
    torch.testing.assert_close(images, generator.decode(torch.full((1, 5), 7)), rtol=0, atol=1e-6)


def test_top_k_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert VAR.filter(logits, top_k=1).isfinite().tolist() == [[False, True, False, False, False]]
    # The two that tie for the second place both stay.
    assert VAR.filter(logits, top_k=2).isfinite().tolist() == [[False, True, True, True, False]]
    assert torch.equal(VAR.filter(logits, top_k=99), logits)
    assert torch.equal(VAR.filter(logits), logits)


def test_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log()
    kept = {p: VAR.filter(logits, top_p=p).isfinite().tolist()[0] for p in (1e-9, 0.1, 0.4, 0.7, 0.8, 1.0)}
    # The least likely go as long as they add up to at most 1 - p; the likeliest always stays.
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
