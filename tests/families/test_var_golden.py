"""Parity with the published VAR code on tiny models, with the tolerances of the measurements."""

import pytest
import torch
from golden_data import GOLDEN, META, VARIANTS, golden_var, outputs
from safetensors.torch import load_file
from torch import Tensor

from sfumato.families.var.generator import VAR
from sfumato.families.var.published import _published_var
from sfumato.request import Request
from sfumato.settings import Settings
from sfumato.testing import class_request

ATOL = 2e-4


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokenizer(variant: str):
    golden, generator = outputs(variant), golden_var(variant)
    tokenizer, quantizer = generator.tokenizer, generator.tokenizer.quantizer
    assert quantizer.phi_index == tuple(META["variants"][variant]["phi_index_per_scale"])
    images = (golden["images"] + 1) / 2
    features = tokenizer.features(images)
    close(features, golden["encoder_features"])
    _, accumulated, _ = quantizer.quantize(features)
    close(torch.stack(accumulated), golden["f_hat_per_scale"])
    assert torch.equal(generator.encode(images), golden["idx"])
    close(generator.decode(golden["idx"]) * 2 - 1, golden["decoded_image"])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_teacher_forced_logits(variant: str):
    golden, generator = outputs(variant), golden_var(variant)
    codes = generator.tokenizer.quantizer.codes_before(golden["idx"].split(generator.units, dim=1))
    assert codes is not None
    close(codes, golden["var_input"])
    logits = generator.logits(class_request(golden["labels"]), golden["idx"], Settings())
    close(logits, golden["logits"])
    close(logits.log_softmax(-1).gather(-1, golden["idx"][..., None])[..., 0], golden["token_logprobs"])
    null = class_request(torch.full_like(golden["labels"], generator.config.num_classes))
    close(generator.logits(null, golden["idx"], Settings()), golden["logits_null_class"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@torch.no_grad()
def test_greedy_sampling(variant: str, guidance: float):
    golden, generator, settings = outputs(variant), golden_var(variant), Settings(guidance=guidance)
    name = f"greedy_cfg{str(guidance).replace('.', '') if guidance else 0}"
    request = class_request(golden["labels"])
    tokens, logits = draw(generator, request, settings, lambda unit: unit.argmax(-1))
    close(logits, golden[f"{name}_logits"])
    assert torch.equal(tokens, golden[f"{name}_idx"])
    if f"{name}_image" in golden:
        close(generator.decode(tokens), golden[f"{name}_image"])
    close(generator.logits(request, tokens, settings), golden[f"{name}_logits"])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_filtered_sampling_with_the_references_random_stream(variant: str):
    golden, generator = outputs(variant), golden_var(variant)
    rng = torch.Generator().manual_seed(7)

    def choose(logits: Tensor) -> Tensor:
        probabilities = generator.filter(logits, top_k=12, top_p=0.9).softmax(-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1, generator=rng).view(logits.shape[:2])

    tokens, _ = draw(generator, class_request(golden["labels"]), Settings(guidance=1.5), choose)
    assert torch.equal(tokens, golden["seeded_idx"])
    if "seeded_image" in golden:
        close(generator.decode(tokens), golden["seeded_image"])


def draw(generator: VAR, request: Request, settings: Settings, choose) -> tuple[Tensor, Tensor]:
    """Return tokens chosen scale by scale, and the logits that they were chosen from."""
    state, unit, tokens, logits = generator.start(request, settings), None, [], []
    for _ in generator.units:
        logits.append(generator.step(state, unit))
        unit = choose(logits[-1])
        tokens.append(unit)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (0, 0.9), (12, 0.9), (1, 0.0), (40, 1.0), (5, 0.0)])
def test_filter(top_k: int, top_p: float):
    golden = load_file(GOLDEN / "var_filter.safetensors")
    assert torch.equal(VAR.filter(golden["logits"], top_k, top_p), golden[f"filtered_topk{top_k}_topp{top_p}"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str):
    golden, generator = outputs(variant), golden_var(variant)
    logits = generator.logits(class_request(golden["labels"]), golden["idx"], Settings())
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), golden["idx"].flatten())
    assert loss.item() == pytest.approx(META["variants"][variant]["loss"], abs=1e-5)
    loss.backward()
    gradients = published_gradients(generator)
    for name, norm in META["variants"][variant]["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3), name
        if f"grad.{name}" in golden:
            error = (gradients[name] - golden[f"grad.{name}"].reshape(gradients[name].shape)).norm().item()
            assert error <= 1e-3 * norm, name


def published_gradients(generator: VAR) -> dict[str, Tensor]:
    named = generator.network.named_parameters()
    return {_published_var(name)[0]: p.grad for name, p in named if p.grad is not None}
