"""Parity with the published Switti code on tiny models, with the tolerances of the measurements."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_data import SWITTI_META, SWITTI_VARIANTS, golden_switti, switti_data, switti_inputs
from torch import Tensor

from sfumato.families.switti import network
from sfumato.families.switti.network import fourier_features
from sfumato.families.switti.published import _published
from sfumato.policy import Policy
from sfumato.request import Request, Words
from sfumato.settings import PLAIN, Settings

ATOL, GUIDED_ATOL = 2e-4, 5e-4
RUNS = [(variant, name) for variant in SWITTI_VARIANTS for name in SWITTI_META[variant]["runs"]]
both = pytest.mark.parametrize("variant", SWITTI_VARIANTS)


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@both
def test_tokenizer(variant: str):
    golden, generator = switti_data(variant), golden_switti(variant)
    quantizer = generator.tokenizer.quantizer
    assert quantizer.phi_index == tuple(SWITTI_META[variant]["phi_index_per_scale"])
    images = (golden["images"] + 1) / 2
    close(generator.tokenizer.features(images), golden["encoder_features"])
    assert torch.equal(generator.encode(images), golden["idx"])
    close(generator.decode(golden["idx"]) * 2 - 1, golden["decoded_image"])
    codes = quantizer.codes_before(golden["idx"].split(generator.units, dim=1))
    assert codes is not None
    close(codes, golden["var_input"])


@both
def test_rotation(variant: str):
    close(golden_switti(variant).network.rotation, switti_data(variant)["freqs_cis"], atol=2e-6)


@both
@torch.no_grad()
def test_what_is_read_of_the_text(variant: str):
    golden, generator = switti_data(variant), golden_switti(variant)
    text = generator._text(switti_inputs(), guided=True)
    condition = generator.network.caption_projection(text.pooled)
    close(condition[:2], golden["cond"])
    close(condition[2:], golden["cond_null"].expand(2, -1))
    assert text.mask.sum(1).tolist() == [4, 7, 2, 2]


@both
@torch.no_grad()
def test_crop_condition(variant: str):
    golden, transformer = switti_data(variant), golden_switti(variant).network

    def embed(values: Tensor) -> Tensor:
        return transformer.crop_projection(fourier_features(values, transformer.crop_frequencies))

    close(embed(golden["crop_condition"].float()), golden["crop_embedding"])
    close(embed(torch.tensor([network.CROP])), golden["crop_embedding_512"])


@both
@torch.no_grad()
def test_logits_of_a_cropped_image(variant: str, monkeypatch: pytest.MonkeyPatch):
    golden, generator, inputs = switti_data(variant), golden_switti(variant), switti_inputs()
    for row, crop in enumerate(golden["crop_condition"].float().tolist()):
        monkeypatch.setattr(network, "CROP", tuple(crop))
        one = slice(row, row + 1)
        close(generator.logits(inputs[one], golden["idx"][one]), golden["logits_crop"][one])


@both
@torch.no_grad()
def test_teacher_forced_logits(variant: str):
    golden, generator, inputs = switti_data(variant), golden_switti(variant), switti_inputs()
    logits = generator.logits(inputs, golden["idx"])
    close(logits, golden["logits"])
    null = inputs.drop(torch.tensor([True, True]))
    close(generator.logits(null, golden["idx"]), golden["logits_null"])
    request = Request(words=Words(names=("one", "two")), inputs=inputs)
    close(Policy(generator, PLAIN).log_probs(request, golden["idx"]), golden["token_logprobs"])


def settings_of(run: dict[str, Any], scales: int) -> Settings:
    """Return the settings of a run of the published sampler."""
    first, end = run.get("turn_on_cfg_start_si", 0), run.get("turn_off_cfg_start_si", scales)
    if not first and end == scales:
        return Settings(guidance=run["cfg"])
    strengths = tuple(run["cfg"] * i / (scales - 1) if first <= i < end else 0.0 for i in range(scales))
    late = run.get("last_scale_temp", 1.0)
    return Settings(guidance=strengths, temperature=tuple(1.0 if i < end else late for i in range(scales)))


@pytest.mark.parametrize(("variant", "name"), RUNS)
@torch.no_grad()
def test_greedy_sampling(variant: str, name: str):
    golden, generator, inputs = switti_data(variant), golden_switti(variant), switti_inputs()
    settings = settings_of(SWITTI_META[variant]["runs"][name], len(generator.units))
    tokens, logits, rows = draw(generator, inputs, settings, lambda unit: unit.argmax(-1))
    close(logits, golden[f"{name}_logits"], GUIDED_ATOL)
    assert torch.equal(tokens, golden[f"{name}_idx"])
    if f"{name}_image" in golden:
        close(generator.decode(tokens), golden[f"{name}_image"])
    close(tempered(generator.logits(inputs, tokens, settings), generator, settings), logits, GUIDED_ATOL)
    # Once guidance is switched off, the unconditional half is not computed.
    guided = SWITTI_META[variant]["runs"][name].get("turn_off_cfg_start_si", len(generator.units))
    assert rows == ([2] * len(rows) if name == "greedy_cfg0" else [4] * guided + [2] * (len(rows) - guided))


@both
@torch.no_grad()
def test_filtered_sampling_with_the_references_random_stream(variant: str):
    golden, generator = switti_data(variant), golden_switti(variant)
    rng = torch.Generator().manual_seed(7)

    def choose(logits: Tensor) -> Tensor:
        probabilities = generator.filter(logits, top_k=12, top_p=0.9).softmax(-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1, generator=rng).view(logits.shape[:2])

    tokens, _, _ = draw(generator, switti_inputs(), Settings(guidance=1.5), choose)
    assert torch.equal(tokens, golden["seeded_idx"])


def draw(generator, inputs, settings: Settings, choose) -> tuple[Tensor, Tensor, list[int]]:
    """Return tokens chosen scale by scale, the logits that they were chosen from, and the rows computed at a scale."""
    state, unit, tokens, logits, rows = generator.start(inputs, settings), None, [], [], []
    for scale in range(len(generator.units)):
        logits.append(generator.step(state, unit) / settings.at("temperature", len(generator.units))[scale])
        unit = choose(logits[-1])
        tokens.append(unit)
        rows.append(len(state.text.mask))
    return torch.cat(tokens, 1), torch.cat(logits, 1), rows


def tempered(logits: Tensor, generator, settings: Settings) -> Tensor:
    parts = logits.split(generator.units, dim=1)
    return torch.cat([part / t for part, t in zip(parts, settings.at("temperature", len(parts)), strict=True)], dim=1)


@both
def test_gradients(variant: str):
    golden, generator = switti_data(variant), golden_switti(variant)
    loss = F.cross_entropy(generator.logits(switti_inputs(), golden["idx"]).flatten(0, 1), golden["idx"].flatten())
    assert loss.item() == pytest.approx(SWITTI_META[variant]["loss"], abs=1e-5)
    loss.backward()
    gradients: dict[str, Tensor] = {}
    for name, parameter in generator.network.named_parameters():
        assert parameter.grad is not None, name
        names = _published(name)
        gradients |= zip(names, parameter.grad.chunk(len(names)), strict=True)
    assert gradients.keys() == SWITTI_META[variant]["grad_norms"].keys()
    for name, norm in SWITTI_META[variant]["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        if f"grad.{name}" in golden:
            error = (gradients[name] - golden[f"grad.{name}"].reshape(gradients[name].shape)).norm().item()
            assert error <= 1e-3 * norm + 1e-6, name
