"""Parity with the published LlamaGen code on tiny class-conditional, grouped-query and text-conditional models."""

import pytest
import torch
import torch.nn.functional as F
from golden_data import (
    GOLDEN,
    LLAMAGEN_META,
    LLAMAGEN_VARIANTS,
    golden_llamagen,
    llamagen_outputs,
    llamagen_request,
)
from safetensors.torch import load_file
from torch import Tensor

from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.published import _published_llamagen
from sfumato.families.next_token_network import causal_mask
from sfumato.request import CaptionFeatures, Request
from sfumato.settings import Settings

ATOL = 2e-4
PLAIN = Settings()
GUIDANCE = {"cfg1": (1.0, -1), "cfg2": (2.0, -1), "cfg2_interval4": (2.0, 4)}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


def draw(generator: LlamaGen, request: Request, settings: Settings, choose) -> tuple[Tensor, Tensor]:
    """Return tokens chosen one by one, and the logits that they were chosen from."""
    state, unit, tokens, logits = generator.start(request, settings), None, [], []
    for _ in generator.units:
        logits.append(generator.step(state, unit))
        unit = choose(logits[-1])
        tokens.append(unit)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


@pytest.mark.parametrize("variant", LLAMAGEN_VARIANTS)
@pytest.mark.parametrize("name", GUIDANCE)
@torch.no_grad()
def test_greedy_sampling(variant: str, name: str):
    guidance, interval = GUIDANCE[name]
    golden, generator, settings = (
        llamagen_outputs(variant),
        golden_llamagen(variant, interval),
        Settings(guidance=guidance),
    )
    request = llamagen_request(variant)
    tokens, logits = draw(generator, request, settings, lambda logits: logits.argmax(-1))
    assert torch.equal(tokens, golden[f"greedy_{name}_tokens"].long())
    close(logits, golden[f"greedy_{name}_logits"])
    close(generator.logits(request, tokens, settings), golden[f"greedy_{name}_logits"])


@pytest.mark.parametrize("variant", LLAMAGEN_VARIANTS)
@torch.no_grad()
def test_filtered_sampling_with_the_references_random_stream(variant: str):
    golden, published = llamagen_outputs(variant), LLAMAGEN_META["gpt"][variant]["seeded_sampling"]
    generator = golden_llamagen(variant)
    rng = torch.Generator().manual_seed(published["torch_manual_seed"])

    def choose(logits: Tensor) -> Tensor:
        kept = generator.filter(logits / published["temperature"], published["top_k"], published["top_p"])
        return torch.multinomial(kept[:, 0].softmax(-1), 1, generator=rng)

    tokens, _ = draw(generator, llamagen_request(variant), Settings(guidance=published["cfg_scale"]), choose)
    assert torch.equal(tokens, golden["seeded_tokens"].long())


@pytest.mark.parametrize("variant", LLAMAGEN_VARIANTS)
@torch.no_grad()
def test_teacher_forced_logits(variant: str):
    golden, generator = llamagen_outputs(variant), golden_llamagen(variant)
    request, tokens = llamagen_request(variant), golden["tokens"]
    first = LLAMAGEN_META["gpt"][variant]["cls_token_num"] - 1  # the position that predicts token 0
    logits = generator.logits(request, tokens, PLAIN)
    close(logits, golden["logits_full"][:, first:-1])
    close(logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0], golden["token_logprobs"])
    nothing = Request(words=request.words, inputs=request.inputs.drop(torch.ones(4, dtype=torch.bool)))
    close(generator.logits(nothing, tokens, PLAIN), golden["logits_full_null"][:, first:-1])


@pytest.mark.parametrize("variant", LLAMAGEN_VARIANTS)
def test_rotary_table(variant: str):
    golden, length = llamagen_outputs(variant)["freqs_cis"], LLAMAGEN_META["gpt"][variant]["cls_token_num"]
    positions = golden_llamagen(variant).network.positions(length, length + 16)
    torch.testing.assert_close(positions, golden, rtol=0, atol=1e-6)
    assert not positions[:length].any()
    assert positions[length:].square().sum(-1).min() > 0.999


def test_mask_of_captions():
    golden = llamagen_outputs("t2i")
    assert torch.equal(causal_mask(golden["caption_mask"].bool(), 24), golden["teacher_forcing_mask"])


def test_captions_padded_at_the_right_are_moved_to_the_left():
    golden = llamagen_outputs("t2i")
    rows = zip(golden["caption_features_right_padded"], golden["caption_mask_right_padded"].bool(), strict=True)
    text = CaptionFeatures.padded([features[mask] for features, mask in rows])
    assert torch.equal(text.features, golden["caption_cond"])
    assert torch.equal(text.mask, golden["caption_mask"].bool())


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (0, 0.9), (12, 0.9), (1, 1.0), (5, 1.0), (100, 1.0)], ids=str)
def test_filter(top_k: int, top_p: float):
    golden = load_file(GOLDEN / "llamagen_filter.safetensors")
    expected = golden[f"filtered_topk{top_k}_topp{top_p}"]
    assert torch.equal(LlamaGen.filter(golden["logits"], top_k, top_p), expected)
    if top_p == 1:
        assert torch.equal(LlamaGen.filter(golden["logits"], top_k), expected)


@pytest.mark.parametrize("variant", LLAMAGEN_VARIANTS)
def test_gradients(variant: str):
    golden, generator, meta = llamagen_outputs(variant), golden_llamagen(variant), LLAMAGEN_META["gpt"][variant]
    logits = generator.logits(llamagen_request(variant), golden["tokens"], PLAIN)
    loss = F.cross_entropy(logits.flatten(0, 1), golden["tokens"].flatten())
    assert loss.item() == pytest.approx(meta["loss"], abs=1e-5)
    loss.backward()
    gradients = {}
    for name, parameter in generator.network.named_parameters():
        assert parameter.grad is not None, name
        names = _published_llamagen(name)
        gradients |= zip(names, parameter.grad.chunk(len(names)), strict=True)
    assert gradients.keys() == meta["grad_norms"].keys()
    for name, norm in meta["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3), name
        if f"grad.{name}" in golden:
            assert (gradients[name] - golden[f"grad.{name}"]).norm().item() <= 1e-3 * norm, name
    assert sum(key.startswith("grad.") for key in golden) >= 10
