"""Switti: sampling and scoring agree, its attention, its unconditional case, and its published format."""

import json
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN, SWITTI_META, golden_switti, switti_data
from safetensors.torch import load_file
from tiny import tiny_config, tiny_switti
from torch import Tensor

from sfumato.capabilities import Forks, Reduction
from sfumato.cli.main import main
from sfumato.families import load_generator, load_published
from sfumato.families.exporting import export
from sfumato.families.library import FAMILIES, releases, save_model
from sfumato.families.switti.generator import Switti
from sfumato.families.switti.network import SwittiConfig
from sfumato.families.switti.published import write_switti
from sfumato.policy import Generator, Policy
from sfumato.recipes import TRAIN_RECIPES
from sfumato.request import Request
from sfumato.settings import PLAIN, PerUnit, Settings
from sfumato.testing import class_request
from sfumato.text.reader import ReadsCaptions
from sfumato.training.plan import make_plan

CAPTIONS = ("apple", "a big red apple on a table", "two owls", "")
PUBLISHED = {"nonar": False, "ar": True}
both = pytest.mark.parametrize("causal", [False, True])
strengths = pytest.mark.parametrize("guidance", [None, 3.0, (0.0, 2.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 2.0)])


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def policy_of(causal: bool, guidance: PerUnit | None = None) -> Policy:
    return Policy(tiny_switti(causal), Settings(guidance=guidance, temperature=(1.0, 1.0, 0.5)))


# ---- distribution


@both
@strengths
@torch.no_grad()
def test_scores_are_those_of_drawing(causal: bool, guidance: PerUnit | None):
    policy = policy_of(causal, guidance)
    request, seeds = policy.request(CAPTIONS), torch.arange(4)
    rollout = policy.sample(request, seeds)
    assert (rollout.log_probs < -0.1).any()
    close(policy.log_probs(request, rollout.tokens), rollout.log_probs)
    close(policy.entropy(request, rollout.tokens), rollout.entropy)
    for row, caption in enumerate(CAPTIONS):  # one at a time, without the padding of longer captions
        alone = policy.sample(policy.request(caption), seeds[row : row + 1])
        assert torch.equal(alone.tokens[0], rollout.tokens[row])
        close(alone.log_probs[0], rollout.log_probs[row])


@both
@strengths
@torch.no_grad()
def test_parts_of_scores(causal: bool, guidance: PerUnit | None):
    policy = policy_of(causal, guidance)
    generator, request = policy.generator, policy.request(CAPTIONS)
    assert isinstance(generator, Switti)
    tokens, settings = policy.sample(request, torch.arange(4)).tokens, policy.settings
    logits = generator.logits(request, tokens, settings)
    for count, length in ((1, 1), (2, 5)):
        close(generator.logits(request, tokens[:, :length], settings, None, count), logits[:, :length], 1e-5)
    largest = Reduction(lambda part, span: part.amax(-1), positions=4)
    close(generator.logits(request, tokens, settings, largest), logits.amax(-1), 1e-5)


@both
@torch.no_grad()
def test_guidance_by_hand(causal: bool):
    policy = policy_of(causal)
    generator, request = policy.generator, policy.request(CAPTIONS)
    tokens = policy.sample(request, torch.arange(4)).tokens
    conditional = generator.logits(request, tokens, PLAIN)
    empty = generator.logits(policy.request([""] * 4), tokens, PLAIN)
    assert not torch.allclose(conditional, empty, atol=0.05)
    dropped = Request(words=request.words, inputs=request.inputs.drop(torch.ones(4, dtype=torch.bool)))
    close(generator.logits(dropped, tokens, PLAIN), empty, 1e-5)
    ramp = torch.tensor([0.0, 1.5, 3.0]).repeat_interleave(torch.tensor([1, 4, 16]))[:, None]
    expected = (1 + ramp) * conditional - ramp * empty
    close(generator.logits(request, tokens, Settings(guidance=3.0)), expected)


@both
def test_what_tokens_attend_to(causal: bool):
    """Only in Switti-AR do the logits of a scale depend on the inputs of coarser scales, and never on finer ones."""
    generator = tiny_switti(causal)
    text = generator._text(Policy(generator).request("apple").inputs, guided=False)  # pyright: ignore[reportArgumentType]
    codes = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = generator.network(text, codes)
    for first, end in ((0, 1), (1, 5), (5, 21)):
        (gradient,) = torch.autograd.grad(logits[:, first:end].sin().sum(), codes, retain_graph=True)
        seen = gradient[0].abs().sum(1) > 0
        expected = torch.zeros(20, dtype=torch.bool)
        expected[0 if causal else max(0, first - 1) : end - 1] = True
        assert torch.equal(seen, expected), (first, end)


@torch.no_grad()
def test_the_unconditional_half_is_computed_only_while_it_is_needed():
    generator = tiny_switti(causal=True)
    request = Policy(generator).request(CAPTIONS)
    for guidance, expected in {None: [4, 4, 4], 3.0: [8, 8, 8], (0.0, 2.0, 0.0): [8, 8, 4]}.items():
        state, drawn, rows = generator.start(request, Settings(guidance=guidance)), None, []
        for _ in generator.units:
            drawn = generator.step(state, drawn).argmax(-1)
            rows.append(len(state.text.mask))
            assert all(cache.attention is not None and cache.attention.batch == rows[-1] for cache in state.caches)
        assert rows == expected


@both
@pytest.mark.parametrize("guidance", [None, (0.0, 2.0, 0.0)])
@torch.no_grad()
def test_a_forked_state_goes_on_like_its_original(causal: bool, guidance: PerUnit | None):
    generator, settings = tiny_switti(causal), Settings(guidance=guidance)
    assert isinstance(generator, Forks)
    request = Policy(generator).request(CAPTIONS[:2])
    state = generator.start(request, settings)
    drawn = generator.step(state, None).argmax(-1)
    fork = generator.fork(state, 2)
    for _ in range(2):
        copies = drawn.repeat_interleave(2, dim=0)
        expected = generator.step(state, drawn)
        close(generator.step(fork, copies), expected.repeat_interleave(2, dim=0), 1e-5)
        drawn = expected.argmax(-1)


@both
def test_half_precision_under_autocast(causal: bool):
    policy = policy_of(causal, 2.0)
    request = policy.request(CAPTIONS)
    rollout = policy.sample(request, torch.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        state = policy.generator.start(request.inputs, policy.settings)
        assert policy.generator.step(state, None).dtype == torch.float32
        keys = state.caches[0].attention.keys if causal else state.caches[0].text[0]
        assert keys.dtype == torch.bfloat16
        low = policy.log_probs(request, rollout.tokens)
    assert (low - rollout.log_probs).abs().mean() < 0.1
    low.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.generator.network.parameters())


def test_errors():
    generator = tiny_switti()
    request = Policy(generator).request("apple")
    assert isinstance(generator, Generator)
    assert isinstance(generator, ReadsCaptions)
    with bad_input("inputs", "captions", "ClassInputs"):
        generator.start(class_request([0]))
    with bad_input("tokens", "21", "5"):
        generator.logits(request, torch.zeros(1, 5, dtype=torch.long))
    with bad_input("text", "64 wide", "reads 2048"):
        golden_switti("ar").start(request)
    with pytest.raises(ValueError, match="give None"):
        generator.step(generator.start(request), torch.zeros(1, 1, dtype=torch.long))
    with bad_input("num_heads", "7", "1920"):
        SwittiConfig(num_heads=7)
    with bad_input("pooled_width", "65", "64"):
        SwittiConfig(pooled_width=65, caption_width=64)


# ---- published format


@pytest.mark.parametrize("variant", PUBLISHED)
def test_round_trip(variant: str):
    generator = golden_switti(variant)
    assert generator.config.causal == PUBLISHED[variant]  # as the mask in the file says
    assert generator.config.crop_condition
    for written, name in zip(write_switti(generator), (f"{variant}_weights", "vqvae_weights"), strict=True):
        original = switti_data(name)
        assert written.keys() == original.keys()
        for key, tensor in original.items():
            if "ema_vocab_hit" not in key:  # a counter with one row per scale
                assert written[key].shape == tensor.shape, key
                assert torch.equal(written[key], tensor.to(written[key].dtype)), key


def test_a_model_without_crop_condition():
    weights = {k: v for k, v in switti_data("ar_weights").items() if "crop" not in k}
    generator = load_published(
        "switti", weights, switti_data("vqvae_weights"), patch_nums=SWITTI_META["ar"]["patch_nums"], num_heads=2
    )
    assert isinstance(generator, Switti)
    assert not generator.config.crop_condition
    assert write_switti(generator)[0].keys() == weights.keys()


def test_contradictions():
    weights, tokenizer = switti_data("ar_weights"), switti_data("vqvae_weights")
    right = {"patch_nums": (1, 2, 3, 4, 5), "num_heads": 2}
    with bad_input("patch_nums", "(1, 2, 3, 4, 5)"):
        load_published("switti", weights, tokenizer, patch_nums=(1, 2, 3, 5, 4), num_heads=2)
    with bad_input("causal", "False", "give True"):
        load_published("switti", weights, tokenizer, **right, causal=False)
    unmasked = {k: v for k, v in weights.items() if k != "attn_bias_for_masking"}
    with bad_input("causal", "attn_bias_for_masking"):
        load_published("switti", unmasked, tokenizer, **right)
    assert load_published("switti", unmasked, tokenizer, **right, causal=True).units == (1, 4, 9, 16, 25)
    with bad_input("weights", "head.bias"):
        load_published("switti", {k: v for k, v in weights.items() if k != "head.bias"}, tokenizer, **right)
    with bad_input("weights", "unknown", "more"):
        load_published("switti", {**weights, "more": torch.zeros(1)}, tokenizer, **right)


@pytest.mark.parametrize("pixels", [512, 1024])
def test_size_of_the_releases(pixels: int):
    manifest = json.loads((GOLDEN / f"manifests/switti_{pixels}.json").read_text())
    for name in (f"switti-{pixels}", f"switti-ar-{pixels}"):
        family, release = releases()[name]
        with torch.device("meta"):
            generator = family.build(release.shape)
        assert isinstance(generator, Switti)
        count = sum(p.numel() for p in generator.network.parameters())
        # The frequencies of the crop condition are a frozen parameter in the published code.
        assert count + generator.network.crop_frequencies.numel() == manifest["n_parameters"], name
        assert sum(generator.units) == manifest["config"]["tokens"]
        settings = release.settings
        assert settings.at("guidance", len(generator.units))[-1] == 0
        assert settings.at("temperature", len(generator.units))[-1] == 0.1


# ---- runs


@pytest.mark.parametrize("guidance", [None, (0.0, 1.0, 0.0)])
def test_plan(guidance: PerUnit | None, tmp_path: Path):
    save_model(tmp_path, tiny_switti())
    plan = make_plan(tiny_config(tmp_path, guidance=guidance, prompts="captions.txt"))
    assert all(phase.kernels > 100 and phase.peak > plan.static["weights"] for phase in plan.phases.values())


@pytest.mark.parametrize("model", ["switti-512", "switti-ar-512"])
def test_recipes(model: str):
    config = TRAIN_RECIPES[model].build()
    config.validate()
    assert config.model == model
    assert config.policy.temperature == 1
    assert config.policy.guidance == releases()[model][1].settings.guidance


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run(rank: int, tmp_path: Path):
    save_model(tmp_path / "model", tiny_switti(causal=bool(rank)))
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS[:3]) + "\n")
    run = [
        "train", "switti-512", "--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "captions.txt"),
        "--reward", "brightness", "1", "--run-dir", str(tmp_path / "run"), "--device", "cpu", "--precision", "fp32",
        "--groups-per-step", "2", "--group-size", "2", "--minibatch-size", "4", "--eval-images", "0",
        "--guidance", "0", "1", "0", "--lora-rank", str(rank), "--learning-rate", "1e-3",
    ]  # fmt: skip
    assert main([*run, "--steps", "1"]) == 0
    assert main([*run, "--steps", "2", "--resume"]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    assert all(line["ratio_mean"] == pytest.approx(1, abs=0.05) for line in metrics)
    assert main(["sample", str(tmp_path / "run"), "--prompts", "an owl", "--out", str(tmp_path / "owl.png")]) == 0
    assert (tmp_path / "owl.png").is_file()
    before, after = (load_generator(tmp_path / name).network.state_dict() for name in ("model", "run"))
    assert not torch.equal(before["blocks.1.cross.query.weight"], after["blocks.1.cross.query.weight"])
    files = export(str(tmp_path / "run"), tmp_path / "out", "safetensors")
    assert [file.name for file in files] == ["switti.safetensors", "vqvae.safetensors"]
    network, tokenizer = map(load_file, files)
    again = FAMILIES["switti"].read
    assert again is not None
    loaded = again(network, tokenizer, patch_nums=(1, 2, 4), num_heads=2, norm_groups=4, pooled_width=32)
    assert isinstance(loaded, Switti)
    assert loaded.config.causal == bool(rank)
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, after[name]), name
