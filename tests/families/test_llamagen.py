"""Properties of LlamaGen that hold for any weights: causality, captions, guidance, decoding state, filter."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from errors import bad_input
from golden_data import golden_llamagen, llamagen_outputs, llamagen_request
from tiny import CLASS_NAMES, LLAMAGEN, VQ_TOKENIZER, tiny_captions, tiny_llamagen, tiny_request
from torch import Tensor

from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer
from sfumato.families.llamagen.published import write_llamagen
from sfumato.families.next_token_network import causal_mask
from sfumato.families.vq import VQModel
from sfumato.nn.rotary import rotate
from sfumato.policy import Card, Generator, Policy
from sfumato.request import CaptionFeatures, ClassInputs, Request, TextInputs, Words
from sfumato.settings import PerUnit, Settings
from sfumato.testing import text_request
from sfumato.text.reader import ReadsCaptions

PLAIN, GUIDED = Settings(), Settings(guidance=2.5)
TEXT = [False, True]
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [15, 0, 3, 3, 12, 6, 1, 8, 2], [5, 5, 5, 5, 5, 5, 5, 5, 5]])


def asked(text: bool) -> Request:
    """Return a request for three different conditions; if they are captions, two have padding."""
    return tiny_captions([2, 4, 1]) if text else tiny_request([0, 3, 4])


def dropped(request: Request, null: list[bool]) -> Request:
    """Return the request without these conditions."""
    return replace(request, inputs=request.inputs.drop(torch.tensor(null)))


def captions_of(request: Request) -> CaptionFeatures:
    assert isinstance(request.inputs, TextInputs)
    return request.inputs.captions


def with_captions(request: Request, captions: CaptionFeatures) -> Request:
    """Return the request with another table of captions."""
    assert isinstance(request.inputs, TextInputs)
    return replace(request, inputs=replace(request.inputs, captions=captions))


def decoded(generator: LlamaGen, request: Request, tokens: Tensor, settings: Settings) -> Tensor:
    """Return the logits of these tokens, computed step by step."""
    state = generator.start(request, settings)
    units: list[Tensor | None] = [None, *tokens[:, :-1].split(1, dim=1)]
    return torch.cat([generator.step(state, unit) for unit in units], dim=1)


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
@torch.no_grad()
def test_causality(variant: str):
    generator, request, settings = golden_llamagen(variant), llamagen_request(variant), Settings(guidance=1.5)
    tokens = llamagen_outputs(variant)["tokens"]
    logits = generator.logits(request, tokens, settings)
    for position in range(len(generator.units)):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % 64
        difference = (generator.logits(request, changed, settings) - logits).abs().amax((0, 2))
        # The change leaves tokens up to and including the changed one bit-identical, and affects all later ones.
        assert difference[: position + 1].max() == 0, position
        assert position + 1 == len(difference) or difference[position + 1 :].min() > 1e-4, position


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "interval"), [(1.0, -1), (2.5, -1), (2.5, 0), (2.5, 3), (2.5, 99)])
@torch.no_grad()
def test_decoding_gives_the_teacher_forced_logits(text: bool, guidance: float, interval: int):
    generator, settings = tiny_llamagen(text=text, guidance_interval=interval), Settings(guidance=guidance)
    logits = generator.logits(asked(text), TOKENS, settings)
    torch.testing.assert_close(decoded(generator, asked(text), TOKENS, settings), logits, rtol=0, atol=2e-5)
    assert logits.std() > 0.5


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_guidance_by_hand(text: bool):
    generator = tiny_llamagen(text=text)
    conditional = generator.logits(asked(text), TOKENS, PLAIN)
    unconditional = generator.logits(dropped(asked(text), [True] * 3), TOKENS, PLAIN)
    expected = unconditional + 2.5 * (conditional - unconditional)
    guided = generator.logits(asked(text), TOKENS, GUIDED)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5)
    assert (guided - conditional).abs().amax((0, 2)).min() > 0.1
    # The published interval i guides the first i + 2 tokens.
    first = tiny_llamagen(text=text, guidance_interval=3).logits(asked(text), TOKENS, GUIDED)
    torch.testing.assert_close(first[:, :5], expected[:, :5], rtol=0, atol=1e-5)
    torch.testing.assert_close(first[:, 5:], conditional[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_a_strength_for_each_token(text: bool):
    generator, request = tiny_llamagen(text=text), asked(text)
    constant = Settings(guidance=(2.5,) * 9)
    expected = generator.logits(request, TOKENS, GUIDED)
    assert torch.equal(generator.logits(request, TOKENS, constant), expected)
    assert torch.equal(decoded(generator, request, TOKENS, constant), decoded(generator, request, TOKENS, GUIDED))
    # Only the first tokens are guided, as with an interval.
    first = Settings(guidance=(2.5,) * 5 + (1.0,) * 4)
    interval = tiny_llamagen(text=text, guidance_interval=3)
    assert torch.equal(generator.logits(request, TOKENS, first), interval.logits(request, TOKENS, GUIDED))
    assert torch.equal(decoded(generator, request, TOKENS, first), decoded(interval, request, TOKENS, GUIDED))
    # By hand, with unguided tokens in between.
    strengths = (1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0, 1.5)
    conditional = generator.logits(request, TOKENS, PLAIN)
    unconditional = generator.logits(dropped(request, [True] * 3), TOKENS, PLAIN)
    by_hand = unconditional + torch.tensor(strengths)[:, None] * (conditional - unconditional)
    settings = Settings(guidance=strengths)
    torch.testing.assert_close(generator.logits(request, TOKENS, settings), by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(generator, request, TOKENS, settings), by_hand, rtol=0, atol=2e-5)


def test_a_list_of_guidance_has_a_strength_for_each_token():
    generator, settings = tiny_llamagen(), Settings(guidance=(1.0, 2.0, 3.0))
    with bad_input("guidance", "3", "9"):
        generator.start(asked(False), settings)
    with bad_input("guidance", "3", "9"):
        generator.logits(asked(False), TOKENS, settings)


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_null_conditions_in_sampling_and_scoring(text: bool, guidance: float):
    generator, settings = tiny_llamagen(text=text), Settings(guidance=guidance)
    mixed = dropped(asked(text), [False, True, False])
    logits = generator.logits(mixed, TOKENS, settings)
    torch.testing.assert_close(decoded(generator, mixed, TOKENS, settings), logits, rtol=0, atol=2e-5)
    whole, nothing = generator.logits(asked(text), TOKENS, settings), dropped(asked(text), [True] * 3)
    torch.testing.assert_close(logits[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-5)
    # Guiding a null condition away from itself changes nothing, for any strength.
    unguided = generator.logits(nothing, TOKENS, PLAIN)
    torch.testing.assert_close(logits[1], unguided[1], rtol=0, atol=1e-5)
    assert (logits[1] - whole[1]).abs().max() > 0.1
    if not text:
        no_class = generator.logits(tiny_request([5, 5, 5]), TOKENS, settings)
        torch.testing.assert_close(no_class[1], logits[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_inputs_alone_are_as_good_as_a_request(text: bool):
    generator, request = tiny_llamagen(text=text), asked(text)
    inputs = request.inputs
    assert isinstance(inputs, ClassInputs | TextInputs)
    assert torch.equal(generator.logits(inputs, TOKENS, GUIDED), generator.logits(request, TOKENS, GUIDED))
    first = generator.step(generator.start(inputs, GUIDED), None)
    assert torch.equal(first, generator.step(generator.start(request, GUIDED), None))


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_another_network_in_the_same_generator(text: bool):
    generator, other, request = tiny_llamagen(text=text), tiny_llamagen(seed=1, text=text), asked(text)
    before = generator.network
    expected, theirs = (g.logits(request, TOKENS, GUIDED) for g in (generator, other))
    twin = generator.with_network(other.network)
    assert isinstance(twin, LlamaGen)
    assert twin.network is other.network
    assert (twin.tokenizer, twin.card, twin.units) == (generator.tokenizer, generator.card, generator.units)
    assert isinstance(twin, ReadsCaptions) == isinstance(generator, ReadsCaptions) == text
    assert not text or twin.reader is generator.reader
    assert torch.equal(twin.logits(request, TOKENS, GUIDED), theirs)
    assert torch.equal(decoded(twin, request, TOKENS, GUIDED), decoded(other, request, TOKENS, GUIDED))
    assert torch.equal(twin.decode(TOKENS), generator.decode(TOKENS))
    assert (theirs - expected).abs().max() > 0.1
    # The original is unchanged, even after the twin changes.
    twin.card = Card(family="other")
    assert generator.network is before
    assert generator.card.family == "llamagen"
    assert torch.equal(generator.logits(request, TOKENS, GUIDED), expected)
    assert generator.state_dict().keys() == twin.state_dict().keys()


def test_inputs_of_words():
    generator = tiny_llamagen()
    inputs = generator.inputs(tiny_request([4, 0]).words)
    assert isinstance(inputs, ClassInputs)
    assert inputs.labels.tolist() == [4, 0]
    with bad_input("classes", "'a cat'", "-1", "0 to 4"):
        generator.inputs(Words(names=("a cat",)))


def rows_read(generator: LlamaGen) -> list[tuple[int, int]]:
    """Return a list to which each pass through the network's last block appends its rows and positions."""
    seen: list[tuple[int, int]] = []
    generator.network.blocks[-1].register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape[:2]))
    )
    return seen


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "rows"), [(None, 3), (0.0, 3), (1.0, 3), ((1.0,) * 9, 3), (2.5, 6)])
@torch.no_grad()
def test_the_unconditional_half_is_computed_only_with_guidance(text: bool, guidance: PerUnit | None, rows: int):
    generator, settings = tiny_llamagen(text=text), Settings(guidance=guidance)
    seen, length = rows_read(generator), 4 if text else 1
    generator.logits(asked(text), TOKENS, settings)
    assert seen == [(rows, length + 8)]
    seen.clear()
    decoded(generator, asked(text), TOKENS, settings)
    assert seen[1:] == [(rows, 1)] * 8
    # All classes share one null class; each caption has a null caption of its own length.
    assert seen[0] == ((rows, length) if text or rows == 3 else (4, 1))


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_after_the_interval_only_the_conditional_half_goes_on(text: bool):
    generator = tiny_llamagen(text=text, guidance_interval=2)
    seen = rows_read(generator)
    decoded(generator, asked(text), TOKENS, GUIDED)
    # Four guided tokens; the first one comes from the condition.
    assert [rows for rows, _ in seen[1:]] == [6, 6, 6, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize(("guidance", "read"), [(1.0, 2), (2.5, 4)])
@torch.no_grad()
def test_a_shared_condition_is_read_once(text: bool, guidance: float, read: int):
    generator, settings = tiny_llamagen(text=text), Settings(guidance=guidance)
    seen = rows_read(generator)
    shared = tiny_captions([2, 4], rows=[1, 0, 1, 1, 0, 1]) if text else tiny_request([3, 0, 3, 3, 0, 3])
    tokens = TOKENS.repeat(2, 1)
    logits = decoded(generator, shared, tokens, settings)
    assert seen[0][0] == (read if text or read == 2 else 3)  # two classes and one null class
    assert {rows for rows, _ in seen[1:]} == {6 if guidance == 1 else 12}
    torch.testing.assert_close(logits, generator.logits(shared, tokens, settings), rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_more_padding_at_the_left_changes_nothing(guidance: float):
    generator, request, settings = tiny_llamagen(text=True), tiny_captions([2, 3, 1]), Settings(guidance=guidance)
    text = captions_of(request)
    longer = CaptionFeatures(features=F.pad(text.features, (0, 0, 2, 0)), mask=F.pad(text.mask, (2, 0)))
    padded = with_captions(request, longer)
    expected = generator.logits(request, TOKENS, settings)
    torch.testing.assert_close(generator.logits(padded, TOKENS, settings), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(generator, padded, TOKENS, settings), expected, rtol=0, atol=1e-5)
    # A caption on its own, without padding, has the same logits as together with longer ones.
    for i, length in enumerate((2, 3, 1)):
        assert text.mask[i].sum() == length
        single = text_request(text.features[i : i + 1, -length:], text.mask[i : i + 1, -length:])
        logits = generator.logits(single, TOKENS[i : i + 1], settings)
        torch.testing.assert_close(logits[0], expected[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_at_the_right_would_change_the_first_token():
    generator, request = tiny_llamagen(text=True), tiny_captions([2, 2, 2])
    text = captions_of(request)
    wrong = CaptionFeatures(features=F.pad(text.features, (0, 0, 0, 2)), mask=F.pad(text.mask, (0, 2)))
    changed = generator.logits(with_captions(request, wrong), TOKENS, PLAIN)
    difference = changed - generator.logits(request, TOKENS, PLAIN)
    assert difference[:, 0].abs().amax(-1).min() > 0.1


@torch.no_grad()
def test_what_is_in_the_padding_does_not_count():
    generator, request = tiny_llamagen(text=True), asked(True)
    text = captions_of(request)
    noise = torch.randn(text.features.shape, generator=torch.Generator().manual_seed(1))
    noisy = replace(text, features=torch.where(text.mask[..., None], text.features, noise))
    changed = with_captions(request, noisy)
    expected = generator.logits(request, TOKENS, GUIDED)
    torch.testing.assert_close(generator.logits(changed, TOKENS, GUIDED), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(generator, changed, TOKENS, GUIDED), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_word_of_a_caption_counts():
    generator, request = tiny_llamagen(text=True), tiny_captions([4, 4, 4])
    text, logits = captions_of(request), generator.logits(request, TOKENS, PLAIN)
    for word in range(4):
        features = text.features.clone()
        features[:, word] += 1
        changed = generator.logits(with_captions(request, replace(text, features=features)), TOKENS, PLAIN)
        assert (changed - logits).abs().amax((0, 2)).min() > 1e-3, word


@torch.no_grad()
def test_every_class_counts():
    generator = tiny_llamagen()
    logits = generator.logits(tiny_request(range(6)), TOKENS[:1].repeat(6, 1), PLAIN)
    assert all((logits[i] - logits[j]).abs().max() > 1e-2 for i in range(6) for j in range(i))


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_the_cache_is_allocated_once(text: bool):
    generator = tiny_llamagen(text=text)
    state = generator.start(asked(text), GUIDED)
    generator.step(state, None)
    memory = [(cache.keys.data_ptr(), cache.values.data_ptr()) for cache in state.caches]
    condition = 4 if text else 1
    for i in range(8):  # the last token is never read
        assert state.position.item() == condition + i
        assert not any(cache.keys[:, :, condition + i :].any() for cache in state.caches)
        generator.step(state, TOKENS[:, i : i + 1])
        assert [(cache.keys.data_ptr(), cache.values.data_ptr()) for cache in state.caches] == memory
    assert all(cache.keys.shape[2] == condition + 8 for cache in state.caches)


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("block", [4, 64])
@torch.no_grad()
def test_reading_more_keys_changes_nothing(text: bool, block: int, monkeypatch: pytest.MonkeyPatch):
    policy = Policy(tiny_llamagen(text=text, guidance_interval=3), replace(GUIDED, temperature=0.7))
    exact = policy.sample(asked(text), torch.arange(3))
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: block)
    rounded = policy.sample(asked(text), torch.arange(3))
    assert torch.equal(rounded.tokens, exact.tokens)
    torch.testing.assert_close(rounded.log_probs, exact.log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_a_mask_is_passed_only_where_captions_are_padded(text: bool):
    generator = tiny_llamagen(text=text)
    even = tiny_captions([3, 3, 3]) if text else asked(False)
    assert generator.start(even, PLAIN).columns is None
    assert not text or generator.start(asked(True), PLAIN).columns is not None


@pytest.mark.parametrize("text", TEXT)
def test_half_precision_under_autocast(text: bool):
    policy = Policy(tiny_llamagen(text=text), Settings(guidance=2.5, temperature=0.7))
    request, seeds = asked(text), torch.arange(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = policy.generator.start(request, policy.settings)
        rollout = policy.sample(request, seeds)
        log_probs = policy.log_probs(request, rollout.tokens)
    assert {cache.keys.dtype for cache in state.caches} == {torch.bfloat16}
    assert rollout.log_probs.dtype == log_probs.dtype == torch.float32
    # bfloat16 has an 8-bit mantissa, and guidance amplifies the error.
    torch.testing.assert_close(rollout.log_probs, log_probs.detach(), rtol=0, atol=0.3)
    torch.testing.assert_close(policy.log_probs(request, rollout.tokens), log_probs, rtol=0, atol=0.5)
    assert (rollout.log_probs - log_probs).abs().mean() < 0.05


def test_step_wants_its_tokens_in_turn():
    generator = tiny_llamagen()
    state, token = generator.start(tiny_request([0]), PLAIN), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^drawn: "):
        generator.step(state, token)
    generator.step(state, None)
    with pytest.raises(ValueError, match=r"^drawn: "):
        generator.step(state, None)
    for _ in range(8):
        generator.step(state, token)
    with pytest.raises(ValueError, match=r"^step: .*9 tokens"):
        generator.step(state, token)


def test_a_model_wants_inputs_of_its_own_kind():
    for text in TEXT:
        generator, other = tiny_llamagen(text=text), asked(not text)
        with bad_input("inputs", "captions" if text else "classes", type(other.inputs).__name__):
            generator.start(other, PLAIN)
        with bad_input("inputs", "captions" if text else "classes", type(other.inputs).__name__):
            generator.logits(other, TOKENS, PLAIN)


def test_a_text_model_wants_captions_of_its_own_encoder():
    generator = tiny_llamagen(text=True)
    wide = text_request(torch.zeros(3, 4, 7))
    with bad_input("text", "(3, 4, 7)", "5 tokens", "width 6"):
        generator.start(wide, PLAIN)
    with bad_input("text", "(1, 6, 6)", "5 tokens"):
        generator.logits(tiny_captions([6], rows=[0, 0, 0]), TOKENS, PLAIN)


def test_a_wrong_number_of_tokens():
    with bad_input("grid_size", "3×3", "16"):
        tiny_llamagen().logits(tiny_request([0]), torch.zeros(1, 16, dtype=torch.int64), PLAIN)


def test_only_the_transformer_learns():
    for text in TEXT:
        generator = tiny_llamagen(text=text)
        assert isinstance(generator, Generator)
        generator.train()
        assert not any(p.requires_grad for p in generator.tokenizer.parameters())
        generator.logits(asked(text), TOKENS, GUIDED).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.network.parameters())


@torch.no_grad()
def test_train_and_eval_are_the_same():
    generator, tokens = tiny_llamagen(), TOKENS.repeat(8, 1)
    request = tiny_request([0, 1, 2, 3] * 6)
    assert torch.equal(
        generator.train().logits(request, tokens, PLAIN), generator.eval().logits(request, tokens, PLAIN)
    )


def test_config_errors():
    with bad_input("num_heads", "3", "16", "4"):
        LlamaGenConfig(width=16, num_heads=3)
    with bad_input("num_heads", "8", "16", "4"):
        LlamaGenConfig(width=16, num_heads=8)
    with bad_input("num_kv_heads", "3", "num_heads 4"):
        LlamaGenConfig(width=16, num_heads=4, num_kv_heads=3)
    with bad_input("num_classes", "1000", "caption_width 6"):
        LlamaGenConfig(caption_width=6)
    with bad_input("num_classes", "0", "caption_width 0"):
        LlamaGenConfig(num_classes=0)
    with bad_input("class_names", "5", "4"):
        LlamaGen(replace(LLAMAGEN, num_classes=4), VQModel(VQ_TOKENIZER), Card(class_names=CLASS_NAMES))


def test_classes_without_names_are_numbered():
    generator = LlamaGen(replace(LLAMAGEN, num_classes=3), VQModel(VQ_TOKENIZER))
    assert generator.card == Card(family="llamagen", class_names=("0", "1", "2"))
    assert tiny_llamagen(text=True).card == Card(family="llamagen")


def test_initial_weights_draw_all_tokens_alike():
    transformer = LlamaGenTransformer(replace(LLAMAGEN, width=64), grid_size=3, vocab_size=500)
    generator = LlamaGen(LLAMAGEN, VQModel(VQ_TOKENIZER))
    assert not generator.logits(tiny_request([0, 1, 2]), TOKENS, PLAIN).any()
    assert transformer.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.blocks[0].gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)  # pyright: ignore


def test_rotation_by_hand():
    transformer = tiny_llamagen().network
    table = transformer.positions(2, 2 + 9)
    assert table.shape == (2 + 9, 4, 2)
    # Heads of width 8 have 4 pairs: two rotate with the row, two with the column, by 1 and 1/100 radian per step.
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
    assert LlamaGen.filter(logits, top_k=2).isfinite().tolist() == [[False, True, True, True, False]]  # ties are kept
    assert torch.equal(LlamaGen.filter(logits, top_k=99), logits)
    assert torch.equal(LlamaGen.filter(logits), logits)


def test_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.0625, 0.0625]]).log()
    kept = {p: LlamaGen.filter(logits, top_p=p).isfinite().tolist()[0] for p in (1e-9, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0)}
    # The most likely tokens are kept, up to and including the one at which their sum exceeds p.
    assert kept[1e-9] == kept[0.4] == [True, False, False, False, False]
    assert kept[0.5] == kept[0.6] == [True, False, True, False, False]
    assert kept[0.8] == [True, True, True, False, False]
    assert sum(kept[0.9]) == 4
    assert kept[1.0] == [True] * 5


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_condition_at_the_origin(text: bool):
    """With unrotated keys for the condition, sampling equals scoring, and differs from the published zeros."""
    published, settings = tiny_llamagen(text=text), Settings(guidance=2.0)
    config = replace(published.config, condition_at_origin=True)
    generator = LlamaGen(config, published.tokenizer, published.card).eval()
    generator.network.load_state_dict(published.network.state_dict())
    request, tokens = asked(text), TOKENS
    logits = generator.logits(request, tokens, settings)
    torch.testing.assert_close(decoded(generator, request, tokens, settings), logits, rtol=0, atol=1e-4)
    assert (logits - published.logits(request, tokens, settings)).abs().max() > 0.1
    # At the origin, row 0 and column 0, the rotation leaves a vector unchanged.
    table = generator.network.positions(2, 2 + 9)
    assert torch.equal(table[0], table[2])
    with bad_input("model", "condition_at_origin"):
        write_llamagen(generator)
