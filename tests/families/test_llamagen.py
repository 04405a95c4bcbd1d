"""Properties of LlamaGen that hold for any weights: causality, captions, guidance, decoding state, filter."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_data import golden_llamagen, llamagen_conditions, llamagen_outputs
from tiny import CLASS_NAMES, LLAMAGEN, VQ_TOKENIZER, tiny_captions, tiny_conditions, tiny_llamagen
from torch import Tensor

from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer, causal_mask, rotate
from sfumato.families.llamagen.tokenizer import VQModel
from sfumato.families.published import export_llamagen
from sfumato.policy import Generator, Policy
from sfumato.rollout import CaptionFeatures, Conditions

TEXT = [False, True]
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [15, 0, 3, 3, 12, 6, 1, 8, 2], [5, 5, 5, 5, 5, 5, 5, 5, 5]])


def asked(text: bool) -> Conditions:
    """Three different conditions, two captions with padding."""
    return tiny_captions([2, 4, 1]) if text else tiny_conditions([0, 3, 4])


def decoded(generator: LlamaGen, conditions: Conditions, tokens: Tensor) -> Tensor:
    """Logits of these tokens from the decoding path."""
    state = generator.start(conditions)
    units: list[Tensor | None] = [None, *tokens[:, :-1].split(1, dim=1)]
    return torch.cat([generator.step(state, unit) for unit in units], dim=1)


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
@torch.no_grad()
def test_causality(variant: str):
    generator, conditions = golden_llamagen(variant, guidance=1.5), llamagen_conditions(variant)
    tokens = llamagen_outputs(variant)["tokens"]
    logits = generator.logits(conditions, tokens)
    for position in range(len(generator.units)):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % 64
        difference = (generator.logits(conditions, changed) - logits).abs().amax((0, 2))
        # Tokens up to and with the changed one see nothing of the change: not a bit. All later ones do.
        assert difference[: position + 1].max() == 0, position
        assert position + 1 == len(difference) or difference[position + 1 :].min() > 1e-4, position


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "interval"), [(1.0, -1), (2.5, -1), (2.5, 0), (2.5, 3), (2.5, 99)])
@torch.no_grad()
def test_decoding_gives_the_teacher_forced_logits(text: bool, guidance: float, interval: int):
    generator = tiny_llamagen(guidance=guidance, text=text, guidance_interval=interval)
    logits = generator.logits(asked(text), TOKENS)
    torch.testing.assert_close(decoded(generator, asked(text), TOKENS), logits, rtol=0, atol=2e-5)
    assert logits.std() > 0.5


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_guidance_by_hand(text: bool):
    conditional = tiny_llamagen(text=text).logits(asked(text), TOKENS)
    nothing = replace(asked(text), null=torch.ones(3, dtype=torch.bool))
    unconditional = tiny_llamagen(text=text).logits(nothing, TOKENS)
    expected = unconditional + 2.5 * (conditional - unconditional)
    guided = tiny_llamagen(guidance=2.5, text=text).logits(asked(text), TOKENS)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5)
    assert (guided - conditional).abs().amax((0, 2)).min() > 0.1
    # The published interval i guides the first i + 2 tokens.
    first = tiny_llamagen(guidance=2.5, text=text, guidance_interval=3).logits(asked(text), TOKENS)
    torch.testing.assert_close(first[:, :5], expected[:, :5], rtol=0, atol=1e-5)
    torch.testing.assert_close(first[:, 5:], conditional[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_null_conditions_in_sampling_and_scoring(text: bool, guidance: float):
    generator = tiny_llamagen(guidance=guidance, text=text)
    mixed = replace(asked(text), null=torch.tensor([False, True, False]))
    logits = generator.logits(mixed, TOKENS)
    torch.testing.assert_close(decoded(generator, mixed, TOKENS), logits, rtol=0, atol=2e-5)
    whole, nothing = generator.logits(asked(text), TOKENS), replace(asked(text), null=torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(logits[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-5)
    # Nothing guided away from nothing is nothing, whatever the strength.
    unguided = tiny_llamagen(text=text).logits(nothing, TOKENS)
    torch.testing.assert_close(logits[1], unguided[1], rtol=0, atol=1e-5)
    assert (logits[1] - whole[1]).abs().max() > 0.1
    if not text:
        no_class = generator.logits(tiny_conditions([5, 5, 5]), TOKENS)
        torch.testing.assert_close(no_class[1], logits[1], rtol=0, atol=1e-5)


def rows_read(generator: LlamaGen) -> list[tuple[int, int]]:
    """A list that grows by the rows and the positions of each pass through the network's last block."""
    seen: list[tuple[int, int]] = []
    generator.transformer.blocks[-1].register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape[:2]))
    )
    return seen


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 3), (1.0, 3), (2.5, 6)])
@torch.no_grad()
def test_the_unconditional_half_is_computed_only_with_guidance(text: bool, guidance: float, rows: int):
    generator = tiny_llamagen(guidance=guidance, text=text)
    seen, length = rows_read(generator), 4 if text else 1
    generator.logits(asked(text), TOKENS)
    assert seen == [(rows, length + 8)]
    seen.clear()
    decoded(generator, asked(text), TOKENS)
    assert seen[1:] == [(rows, 1)] * 8
    # All classes share one null class; each caption has a null caption of its own length.
    assert seen[0] == ((rows, length) if text or rows == 3 else (4, 1))


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_after_the_interval_only_the_conditional_half_goes_on(text: bool):
    generator = tiny_llamagen(guidance=2.5, text=text, guidance_interval=2)
    seen = rows_read(generator)
    decoded(generator, asked(text), TOKENS)
    # Four guided tokens: the first is read off the condition.
    assert [rows for rows, _ in seen[1:]] == [6, 6, 6, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "read"), [(1.0, 2), (2.5, 4)])
@torch.no_grad()
def test_a_shared_condition_is_read_once(text: bool, guidance: float, read: int):
    generator = tiny_llamagen(guidance=guidance, text=text)
    seen = rows_read(generator)
    shared = tiny_captions([2, 4], rows=[1, 0, 1, 1, 0, 1]) if text else tiny_conditions([3, 0, 3, 3, 0, 3])
    tokens = TOKENS.repeat(2, 1)
    logits = decoded(generator, shared, tokens)
    assert seen[0][0] == (read if text or read == 2 else 3)  # classes: two, and one null class
    assert {rows for rows, _ in seen[1:]} == {6 if guidance == 1 else 12}
    torch.testing.assert_close(logits, generator.logits(shared, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_more_padding_at_the_left_changes_nothing(guidance: float):
    generator, conditions = tiny_llamagen(guidance=guidance, text=True), tiny_captions([2, 3, 1])
    text = conditions.text
    assert text is not None
    longer = CaptionFeatures(features=F.pad(text.features, (0, 0, 2, 0)), mask=F.pad(text.mask, (2, 0)))
    padded = replace(conditions, text=longer)
    expected = generator.logits(conditions, TOKENS)
    torch.testing.assert_close(generator.logits(padded, TOKENS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(generator, padded, TOKENS), expected, rtol=0, atol=1e-5)
    # A caption by itself, without any padding, is the same as beside longer ones.
    for i, length in enumerate((2, 3, 1)):
        assert text.mask[i].sum() == length
        alone = CaptionFeatures(features=text.features[i : i + 1, -length:], mask=text.mask[i : i + 1, -length:])
        single = Conditions(labels=torch.tensor([0]), names=("one",), text=alone)
        torch.testing.assert_close(generator.logits(single, TOKENS[i : i + 1])[0], expected[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_at_the_right_would_change_the_first_token():
    generator, conditions = tiny_llamagen(text=True), tiny_captions([2, 2, 2])
    text = conditions.text
    assert text is not None
    wrong = CaptionFeatures(features=F.pad(text.features, (0, 0, 0, 2)), mask=F.pad(text.mask, (0, 2)))
    difference = generator.logits(replace(conditions, text=wrong), TOKENS) - generator.logits(conditions, TOKENS)
    assert difference[:, 0].abs().amax(-1).min() > 0.1


@torch.no_grad()
def test_what_is_in_the_padding_does_not_count():
    generator, conditions = tiny_llamagen(guidance=2.5, text=True), asked(True)
    text = conditions.text
    assert text is not None
    noise = torch.randn(text.features.shape, generator=torch.Generator().manual_seed(1))
    noisy = replace(text, features=torch.where(text.mask[..., None], text.features, noise))
    changed = replace(conditions, text=noisy)
    expected = generator.logits(conditions, TOKENS)
    torch.testing.assert_close(generator.logits(changed, TOKENS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(generator, changed, TOKENS), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_word_of_a_caption_counts():
    generator, conditions = tiny_llamagen(text=True), tiny_captions([4, 4, 4])
    text, logits = conditions.text, generator.logits(conditions, TOKENS)
    assert text is not None
    for word in range(4):
        features = text.features.clone()
        features[:, word] += 1
        changed = generator.logits(replace(conditions, text=replace(text, features=features)), TOKENS)
        assert (changed - logits).abs().amax((0, 2)).min() > 1e-3, word


@torch.no_grad()
def test_every_class_counts():
    generator = tiny_llamagen()
    logits = generator.logits(tiny_conditions(range(6)), TOKENS[:1].repeat(6, 1))
    assert all((logits[i] - logits[j]).abs().max() > 1e-2 for i in range(6) for j in range(i))


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_the_cache_is_allocated_once(text: bool):
    generator = tiny_llamagen(guidance=2.5, text=text)
    state = generator.start(asked(text))
    generator.step(state, None)
    memory = [(cache.keys.data_ptr(), cache.values.data_ptr()) for cache in state.caches]
    total = (4 if text else 1) + 8  # the last token is never read
    for i in range(8):
        assert [cache.length for cache in state.caches] == [total - 8 + i] * 2
        generator.step(state, TOKENS[:, i : i + 1])
        assert [(cache.keys.data_ptr(), cache.values.data_ptr()) for cache in state.caches] == memory
    assert all(cache.length == cache.keys.shape[2] == total for cache in state.caches)


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_a_mask_is_passed_only_where_captions_are_padded(text: bool, monkeypatch: pytest.MonkeyPatch):
    generator = tiny_llamagen(text=text)
    even = tiny_captions([3, 3, 3]) if text else asked(False)
    assert generator.start(even).columns is None
    assert not text or generator.start(asked(True)).columns is not None


@pytest.mark.parametrize("text", TEXT)
def test_half_precision_under_autocast(text: bool):
    policy = Policy(tiny_llamagen(guidance=2.5, text=text), temperature=0.7)
    conditions, seeds = asked(text), torch.arange(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = policy.generator.start(conditions)
        rollout = policy.sample(conditions, seeds)
        log_probs = policy.log_probs(conditions, rollout.tokens)
    assert {cache.keys.dtype for cache in state.caches} == {torch.bfloat16}
    assert rollout.log_probs.dtype == log_probs.dtype == torch.float32
    # bfloat16 has 8 bits of mantissa, and guidance multiplies the error.
    torch.testing.assert_close(rollout.log_probs, log_probs.detach(), rtol=0, atol=0.3)
    torch.testing.assert_close(policy.log_probs(conditions, rollout.tokens), log_probs, rtol=0, atol=0.5)
    assert (rollout.log_probs - log_probs).abs().mean() < 0.05


def test_step_wants_its_tokens_in_turn():
    generator = tiny_llamagen()
    state, token = generator.start(tiny_conditions([0])), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="unit_tokens: give None at the first token"):
        generator.step(state, token)
    generator.step(state, None)
    with pytest.raises(ValueError, match="unit_tokens: give None at the first token"):
        generator.step(state, None)
    for _ in range(8):
        generator.step(state, token)
    with pytest.raises(ValueError, match="step: all 9 tokens are drawn"):
        generator.step(state, token)


def test_a_text_model_wants_captions_of_its_own_encoder():
    generator = tiny_llamagen(text=True)
    words, message = tiny_conditions([0, 1, 2]), "conditions: this model reads captions; give text features"
    with pytest.raises(ValueError, match=message):
        generator.start(words)
    with pytest.raises(ValueError, match=message):
        generator.logits(words, TOKENS)
    wide = CaptionFeatures(features=torch.zeros(3, 4, 7), mask=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"text: features \(3, 4, 7\) are not of at most 5 tokens of width 6") as error:
        generator.start(replace(words, text=wide))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"text: features \(1, 6, 6\) are not of at most 5 tokens"):
        generator.logits(tiny_captions([6], rows=[0, 0, 0]), TOKENS)


def test_only_the_transformer_learns():
    for text in TEXT:
        generator = tiny_llamagen(text=text, guidance=2.5)
        assert isinstance(generator, Generator)
        generator.train()
        assert not any(p.requires_grad for p in generator.tokenizer.parameters())
        generator.logits(asked(text), TOKENS).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.transformer.parameters())


@torch.no_grad()
def test_train_and_eval_are_the_same():
    generator, tokens = tiny_llamagen(), TOKENS.repeat(8, 1)
    conditions = tiny_conditions([0, 1, 2, 3] * 6)
    assert torch.equal(generator.train().logits(conditions, tokens), generator.eval().logits(conditions, tokens))


def test_config_errors():
    with pytest.raises(ValueError, match="num_heads: 3 must part the width 16 into multiples of 4"):
        LlamaGenConfig(width=16, num_heads=3)
    with pytest.raises(ValueError, match="num_heads: 8 must part the width 16 into multiples of 4"):
        LlamaGenConfig(width=16, num_heads=8)
    with pytest.raises(ValueError, match="num_kv_heads: 3 does not divide num_heads 4"):
        LlamaGenConfig(width=16, num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="num_classes: 1000 with caption_width 6; give one and set the other 0"):
        LlamaGenConfig(caption_width=6)
    with pytest.raises(ValueError, match="num_classes: 0 with caption_width 0"):
        LlamaGenConfig(num_classes=0)
    with pytest.raises(ValueError, match="class_names: 5 names for 4 classes"):
        LlamaGen(replace(LLAMAGEN, num_classes=4), VQModel(VQ_TOKENIZER), CLASS_NAMES)


def test_initial_weights_draw_all_tokens_alike():
    transformer = LlamaGenTransformer(replace(LLAMAGEN, width=64), grid_size=3, vocab_size=500)
    generator = LlamaGen(LLAMAGEN, VQModel(VQ_TOKENIZER))
    assert not generator.logits(tiny_conditions([0, 1, 2]), TOKENS).any()
    assert transformer.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.blocks[0].gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)  # pyright: ignore


def test_rotation_by_hand():
    transformer = tiny_llamagen().transformer
    table = transformer.positions(2)
    assert table.shape == (2 + 9, 4, 2)
    # Heads of 8 have 4 pairs: two turn with the row, two with the column, at 1 and 1/100 radian a step.
    angles = torch.atan2(table[2:, :, 1], table[2:, :, 0])
    for i in range(9):
        expected = torch.tensor([i // 3, i // 3 / 100, i % 3, i % 3 / 100])
        torch.testing.assert_close(angles[i], expected, rtol=0, atol=1e-6)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0]).expand(1, 11, 1, 8)
    turned = rotate(x, table)[0, :, 0]
    assert not turned[:2].any()
    cosine, sine = torch.tensor([2.0, 1.0]).cos(), torch.tensor([2.0, 1.0]).sin()  # row 2, column 1
    by_hand = torch.stack([cosine[0], sine[0], 3 * cosine[1] - 4 * sine[1], 4 * cosine[1] + 3 * sine[1]])
    torch.testing.assert_close(turned[2 + 7][[0, 1, 4, 5]], by_hand, rtol=0, atol=1e-6)


def test_mask_by_hand():
    mask = causal_mask(torch.tensor([[False, True], [True, True]]), 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert torch.equal(mask[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())


def test_decode_by_hand():
    generator, tokens = tiny_llamagen(), TOKENS[:1]
    images = generator.decode(tokens)
    assert images.shape == (1, 3, 12, 12)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.05
    codes = F.normalize(generator.tokenizer.quantizer.codebook.weight[tokens[0]], dim=-1).T.reshape(1, 4, 3, 3)
    expected = (generator.tokenizer.decode_features(codes).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_top_k_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert LlamaGen.filter(logits, top_k=1).isfinite().tolist() == [[False, True, False, False, False]]
    assert LlamaGen.filter(logits, top_k=2).isfinite().tolist() == [[False, True, True, True, False]]  # a tie stays
    assert torch.equal(LlamaGen.filter(logits, top_k=99), logits)
    assert torch.equal(LlamaGen.filter(logits), logits)


def test_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.0625, 0.0625]]).log()
    kept = {p: LlamaGen.filter(logits, top_p=p).isfinite().tolist()[0] for p in (1e-9, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0)}
    # The likeliest stay, up to and with the one at which their sum passes p.
    assert kept[1e-9] == kept[0.4] == [True, False, False, False, False]
    assert kept[0.5] == kept[0.6] == [True, False, True, False, False]
    assert kept[0.8] == [True, True, True, False, False]
    assert sum(kept[0.9]) == 4
    assert kept[1.0] == [True] * 5


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_condition_at_the_origin(text: bool):
    """Condition tokens with keys of their own: sampled equals scored, and the published zeros are something else."""
    published = tiny_llamagen(guidance=2.0, text=text)
    config = replace(published.config, condition_at_origin=True)
    generator = LlamaGen(config, published.tokenizer, published.class_names, guidance=2.0).eval()
    generator.transformer.load_state_dict(published.transformer.state_dict())
    conditions, tokens = asked(text), TOKENS
    torch.testing.assert_close(
        decoded(generator, conditions, tokens), generator.logits(conditions, tokens), rtol=0, atol=1e-4
    )
    assert (generator.logits(conditions, tokens) - published.logits(conditions, tokens)).abs().max() > 0.1
    # The origin is where a rotation by row 0 and column 0 leaves a vector.
    table = generator.transformer.positions(2)
    assert torch.equal(table[0], table[2])
    with pytest.raises(ValueError, match="condition_at_origin, which the original code does not know"):
        export_llamagen(generator)
