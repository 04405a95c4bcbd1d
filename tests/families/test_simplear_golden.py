"""Parity with the published SimpleAR code on tiny models, `tied` and `untied`, and with NVIDIA's image tokenizer."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_data import (
    GOLDEN,
    SIMPLEAR_META,
    SIMPLEAR_VARIANTS,
    golden_simplear,
    simplear_data,
    simplear_request,
)
from torch import Tensor

from sfumato.families.simplear.cosmos import infer_cosmos_config, load_cosmos
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.simplear.network import NEGATIVES, OPENINGS, PROMPTS
from sfumato.families.simplear.published import write_simplear
from sfumato.families.simplear.tokenizer import FSQ, CosmosTokenizer
from sfumato.policy import Policy
from sfumato.request import Request, TokenInputs
from sfumato.settings import PLAIN, Settings

ATOL, GUIDED_ATOL = 2e-4, 1e-3
GUIDED, LEVELS = Settings(guidance=6.0), (8, 8, 8, 5, 5, 5)


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def unconditional(request: Request) -> Request:
    return Request(words=request.words, inputs=request.inputs.drop(torch.ones(len(request), dtype=torch.bool)))


def draw(generator: SimpleAR, request: Request, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the most likely codes, one by one, and the logits that they were chosen from."""
    state, unit, tokens, logits = generator.start(request, settings), None, [], []
    for _ in generator.units:
        logits.append(generator.step(state, unit))
        unit = logits[-1].argmax(-1)
        tokens.append(unit)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


@pytest.mark.parametrize("variant", SIMPLEAR_VARIANTS)
@torch.no_grad()
def test_teacher_forced_logits(variant: str):
    golden, generator, request = simplear_data(variant), golden_simplear(variant), simplear_request(variant)
    codes, first = golden["codes"], SIMPLEAR_META[variant]["config"]["len_tokenizer"]
    close(generator.logits(request, codes), golden["tf_logits_cond"][..., first:])
    for name in ("negative", "null"):
        asked = unconditional(simplear_request(variant, name))
        close(generator.logits(asked, codes), golden[f"tf_logits_{name}"][..., first:])
    close(Policy(generator, PLAIN).log_probs(request, codes), golden["logprobs_image_cond"])
    guided = Policy(generator, GUIDED)
    close(guided.log_probs(request, codes), golden["logprobs_image_cfg6"], GUIDED_ATOL)
    close(guided.entropy(request, codes), golden["entropy_image_cfg6"], GUIDED_ATOL)


@pytest.mark.parametrize("variant", SIMPLEAR_VARIANTS)
@pytest.mark.parametrize(("name", "settings"), [("cond", PLAIN), ("cfg6", GUIDED)])
@torch.no_grad()
def test_greedy_sampling(variant: str, name: str, settings: Settings):
    """The published scores are log-probabilities of all ids before guidance: they differ by one number per row."""
    golden, generator = simplear_data(variant), golden_simplear(variant)
    codes, logits = draw(generator, simplear_request(variant), settings)
    assert torch.equal(codes, golden[f"image_{name}_codes"])
    close(logits.log_softmax(-1), golden[f"image_{name}_scores"].log_softmax(-1), GUIDED_ATOL)


@torch.no_grad()
def test_prompts_of_different_lengths_are_as_one_at_a_time():
    golden, generator, request = simplear_data("tied"), golden_simplear("tied"), simplear_request("tied")
    policy, inputs, codes = Policy(generator, GUIDED), request.inputs, golden["codes"]
    assert isinstance(inputs, TokenInputs)
    together, drawn = policy.log_probs(request, codes), policy.sample(request, torch.arange(4)).tokens
    assert golden["prompt_lengths"].unique().numel() > 2
    negative = golden["negative_ids"].tolist()
    for number in range(4):
        table = TokenInputs.padded([inputs.ids[number][inputs.mask[number]].tolist(), negative], padding=0)
        part = slice(number, number + 1)
        asked = Request(words=request.words[part], inputs=replace(table, rows=torch.tensor([0]), null_row=1))
        torch.testing.assert_close(policy.log_probs(asked, codes[part])[0], together[number], rtol=0, atol=1e-4)
        assert torch.equal(policy.sample(asked, torch.tensor([number])).tokens[0], drawn[number])


@pytest.mark.parametrize("variant", SIMPLEAR_VARIANTS)
def test_gradients(variant: str):
    """Those of the guided distribution over image codes, through both branches; tied weights get those of both uses."""
    golden, generator, meta = simplear_data(variant), golden_simplear(variant), SIMPLEAR_META[variant]
    generator.network.model.embed_tokens.weight.requires_grad_(True)
    logits = generator.logits(simplear_request(variant), golden["codes"], GUIDED)
    loss = F.cross_entropy(logits.flatten(0, 1), golden["codes"].flatten())
    assert loss.item() == pytest.approx(meta["loss_image_cfg6"], abs=2e-4)
    loss.backward()
    twin = golden_simplear(variant)  # whose weights are the gradients, to get these with the published names
    for theirs, ours in zip(twin.network.parameters(), generator.network.parameters(), strict=True):
        theirs.data = torch.zeros_like(ours) if ours.grad is None else ours.grad
    gradients = write_simplear(twin)
    assert gradients.keys() == meta["grad_norms_image_cfg6"].keys()
    for key, norm in meta["grad_norms_image_cfg6"].items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-3), key
        if f"grad_image_cfg6.{key}" in golden:
            assert (gradients[key] - golden[f"grad_image_cfg6.{key}"]).norm().item() <= 1e-3 * norm, key


def test_scalar_quantization():
    golden, quantizer = simplear_data("fsq"), FSQ(LEVELS)
    close(quantizer.embed(golden["indices"]), golden["codes"], 0)
    close(quantizer.bound(golden["latents"]), golden["bounded"], 1e-5)
    assert torch.equal(quantizer.nearest(golden["latents"]), golden["latent_index"])
    close(quantizer.embed(golden["latent_index"]), golden["latent_codes"], 0)
    codes = quantizer.embed(torch.arange(64000))
    digits = (codes * torch.tensor([level // 2 for level in LEVELS])).round().long()
    digits = (digits + torch.tensor([level // 2 for level in LEVELS])).to(torch.uint8)
    digest = "a690b99dbca73844ca69698e3ee42ec0eab008be7e57556ed34a89520fc163af"  # of all digits, row by row
    assert hashlib.sha256(digits.numpy().tobytes()).hexdigest() == digest


@torch.no_grad()
def test_image_tokenizer():
    golden, weights = simplear_data("cosmos"), simplear_data("cosmos_weights")
    tokenizer = CosmosTokenizer(infer_cosmos_config(weights, grid_size=4, levels=LEVELS))
    load_cosmos(tokenizer, weights)
    images = (golden["images"] + 1) / 2
    close(tokenizer.features(images), golden["pre_quant"])
    assert torch.equal(tokenizer.encode(images), golden["indices"].flatten(1).long())
    for name in ("", "random_"):
        decoded = tokenizer.decode(golden[f"{name}indices"].flatten(1).long())
        close(decoded, (golden[f"{name}decoded_image"].clamp(-1, 1) + 1) / 2)


def test_templates():
    published = json.loads((GOLDEN / "simplear_templates.json").read_text())
    assert list(OPENINGS) == published["training"]["openings"]
    for name in ("inference", "rl"):
        (opening,) = PROMPTS[name]
        assert f"<|t2i|>{opening}{{}}<|soi|>".format("x") == published[name]["template"].format(prompt="x", caption="x")
    assert f"<|t2i|>{NEGATIVES['inference']}<|soi|>" == published["inference"]["negative"]
    assert f"<|t2i|>{NEGATIVES['training']}<|soi|>" == published["training"]["dropped"]
