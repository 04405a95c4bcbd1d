"""Parity with the published Infinity code on tiny models: `a`, and `p`, whose tokens cover 2 × 2 positions."""

import json
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from golden_data import GOLDEN, INFINITY_META, golden_infinity, infinity_data, infinity_request
from safetensors.torch import load_file
from torch import Tensor

from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import rotary_positions
from sfumato.families.infinity.published import published_infinity
from sfumato.families.infinity.schedules import SCHEDULES, schedule
from sfumato.request import Request
from sfumato.settings import Settings

PLAIN, ATOL, GUIDED_ATOL = Settings(), 2e-4, 5e-4


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=0, atol=atol)


def bits_of(golden: dict[str, Tensor], name: str) -> Tensor:
    return golden[name].flatten(1).long()


def unconditional(request: Request) -> Request:
    null = torch.ones(len(request), dtype=torch.bool)
    return Request(words=request.words, inputs=request.inputs.drop(null))


def draw(generator: Infinity, request: Request, run: dict, choose) -> tuple[Tensor, Tensor]:
    """Return bits chosen scale by scale, and the logits after temperature and guidance that they were chosen from."""
    guidance, tau = (tuple(run[k]) if isinstance(run[k], list) else run[k] for k in ("cfg", "tau"))
    settings = Settings(guidance=guidance, temperature=tau)
    state, unit, tokens, logits = generator.start(request, settings), None, [], []
    for divisor in settings.at("temperature", len(generator.units)):
        logits.append(generator.step(state, unit) / divisor)
        unit = choose(logits[-1])
        tokens.append(unit)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


def test_schedules():
    published = json.loads((GOLDEN / "manifests/infinity_schedules.json").read_text())
    assert {k: [list(size) for size in v] for k, v in SCHEDULES.items()} == published["ratios_h_over_w"]
    for count in published["scales_by_pn"].values():
        assert all(schedule(ratio, count) == full[:count] for ratio, full in SCHEDULES.items())


def test_rotary_positions_of_all_ratios():
    golden = load_file(GOLDEN / "infinity_rope_positions.safetensors")
    for ratio, scales in SCHEDULES.items():
        rows, columns = rotary_positions(scales, scales[-1])
        expected_rows = golden[f"rows.{ratio}"].split([height for height, _ in scales])
        expected_columns = golden[f"cols.{ratio}"].split([width for _, width in scales])
        sizes = [height * width for height, width in scales]
        for i, (height, width) in enumerate(scales):
            start = sum(sizes[:i])
            assert rows[start : start + sizes[i] : width] == expected_rows[i].tolist(), (ratio, i)
            assert columns[start : start + width] == expected_columns[i].tolist(), (ratio, i)
            assert rows[start : start + sizes[i]] == [row for row in rows[start::width][:height] for _ in range(width)]
    # Exact fractions: in floating-point numbers, 27 · (111 / 54) is above 55.5.
    assert Fraction(27 * 111, 54) == Fraction(111, 2)
    assert rotary_positions(((54, 18),), (111, 37))[0][27 * 18] == 56


@pytest.mark.parametrize(("variant", "prefix"), [("p", ""), ("a", "nonsquare_")])
@torch.no_grad()
def test_tokenizer(variant: str, prefix: str):
    golden = infinity_data(f"{variant}_vae")
    generator = golden_infinity(variant, INFINITY_META[variant].get(prefix[:-1], {}).get("schedule"))
    images, bits = (golden[f"{prefix}images"] + 1) / 2, bits_of(golden, f"{prefix}bits")
    features = generator.tokenizer.features(images)
    close(features, golden[f"{prefix}encoder_features"])
    assert torch.equal(generator.encode(images), bits)
    codes = generator._codes(bits.split(generator.units, dim=1))
    assert codes is not None
    close(codes, golden[f"{prefix}var_input"], 1e-5)
    close(generator.decode(bits) * 2 - 1, golden[f"{prefix}decoded_image"])
    if not prefix:
        close(generator.tokenizer.quantize(features)[1][-1], golden["features"], 1e-5)
        # Not the inputs that the published tokenizer returns itself.
        assert (codes - golden["var_input_area_unused"]).abs().max() > 0.1


@pytest.mark.parametrize(("variant", "prefix"), [("p", ""), ("a", ""), ("a", "nonsquare_"), ("a", "pn006_")])
@torch.no_grad()
def test_teacher_forced_logits(variant: str, prefix: str):
    golden, meta = infinity_data(variant), INFINITY_META[variant]
    scales = schedule("1.0", 7) if prefix == "pn006_" else meta.get(prefix[:-1], meta)["schedule"]
    generator, bits = golden_infinity(variant, scales), bits_of(golden, f"{prefix}bits")
    request = infinity_request(variant, "" if prefix == "pn006_" else prefix)
    request = request[: len(bits)]
    logits = generator.logits(request, bits, PLAIN)
    close(logits, golden[f"{prefix}logits"])
    close(generator.logits(unconditional(request), bits, PLAIN), golden[f"{prefix}logits_uncond"])
    if prefix != "pn006_":
        close(logits.log_softmax(-1).gather(-1, bits[..., None])[..., 0], golden[f"{prefix}bit_logprobs"])
        cosines, sines = golden[f"{prefix}rope"]
        close(generator.network.rotation, torch.stack([cosines, sines], dim=-1), 2e-6)
    else:
        close(generator._codes(bits.split(generator.units, dim=1)), golden["pn006_var_input"], 1e-5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("variant", "name"),
    [("p", "greedy_cfg1"), ("p", "greedy_cfg3"), ("p", "greedy_cfglist_tau"), ("a", "greedy_cfglist_tau")],
)
@torch.no_grad()
def test_greedy_sampling(variant: str, name: str):
    golden, generator, run = infinity_data(variant), golden_infinity(variant), INFINITY_META[variant]["runs"][name]
    request = infinity_request(variant)
    bits, logits = draw(generator, request, run, lambda logits: logits.argmax(-1))
    close(logits, golden[f"{name}_logits"], GUIDED_ATOL)
    if f"{name}_bits" in golden:
        assert torch.equal(bits, bits_of(golden, f"{name}_bits"))
    if f"{name}_image" in golden:
        close(generator.decode(bits)[:1] * 2 - 1, golden[f"{name}_image"])
    if f"{name}_image_uint8" in golden:
        check_picture(generator.decode(bits), golden[f"{name}_image_uint8"])


@torch.no_grad()
def test_greedy_sampling_of_an_image_that_is_not_square():
    golden, shape = infinity_data("a"), INFINITY_META["a"]["nonsquare"]
    generator, request = golden_infinity("a", shape["schedule"]), infinity_request("a", "nonsquare_")
    bits, logits = draw(generator, request, {"cfg": 3.0, "tau": 1.0}, lambda logits: logits.argmax(-1))
    close(logits, golden["nonsquare_greedy_cfg3_logits"], GUIDED_ATOL)
    check_picture(generator.decode(bits), golden["nonsquare_greedy_cfg3_image_uint8"])


def check_picture(images: Tensor, published: Tensor) -> None:
    """Compare with the sampler's bytes: channel last, blue first."""
    ours = (images * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
    assert (ours.int() - published.int()).abs().max() <= 1


@pytest.mark.parametrize("variant", ["p", "a"])
@torch.no_grad()
def test_filtered_sampling_with_the_references_random_stream(variant: str):
    golden, generator, run = infinity_data(variant), golden_infinity(variant), INFINITY_META[variant]["seeded"]
    rng = torch.Generator().manual_seed(run["g_seed"])

    def choose(logits: Tensor) -> Tensor:
        kept = generator.filter(logits, run["top_k"], run["top_p"])
        return torch.multinomial(kept.softmax(-1).flatten(0, 1), 1, generator=rng).view(logits.shape[:2])

    bits, logits = draw(generator, infinity_request(variant), run, choose)
    assert torch.equal(bits, bits_of(golden, "seeded_bits"))
    close(logits, golden["seeded_logits"], GUIDED_ATOL)
    probabilities = logits.softmax(-1).amin(-1)
    assert 0.01 < (probabilities <= 0.03).float().mean() < 0.99  # the nucleus decides some bits, but not all


@pytest.mark.parametrize("variant", ["p", "a"])
def test_gradients(variant: str):
    golden, generator, meta = infinity_data(variant), golden_infinity(variant), INFINITY_META[variant]
    request, bits = infinity_request(variant), bits_of(golden, "bits")
    loss = F.cross_entropy(generator.logits(request, bits, PLAIN).flatten(0, 1), bits.flatten())
    assert loss.item() == pytest.approx(meta["loss"], abs=1e-5)
    loss.backward()
    named, config = dict(generator.network.named_parameters()), generator.config
    gradients = {published_infinity(name, config): p.grad for name, p in named.items()}
    assert gradients.keys() == meta["grad_norms"].keys()
    for name, norm in meta["grad_norms"].items():
        gradient = gradients[name]
        assert gradient is not None, name
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        if f"grad.{name}" in golden:
            error = (gradient - golden[f"grad.{name}"].reshape(gradient.shape)).norm().item()
            assert error <= 1e-3 * norm + 1e-6, name
    generator.zero_grad()
    loss = F.cross_entropy(generator.logits(unconditional(request), bits, PLAIN).flatten(0, 1), bits.flatten())
    assert loss.item() == pytest.approx(meta["loss_uncond"], abs=1e-5)
    loss.backward()
    gradient, expected = named["null_caption"].grad, golden["grad_uncond.cfg_uncond"]
    assert gradient is not None
    assert (gradient - expected).norm() <= 1e-3 * expected.norm()
