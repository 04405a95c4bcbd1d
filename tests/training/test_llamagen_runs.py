"""GRPO on tiny next-token generators, of classes and of captions: the same trainer, commands and run folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, metrics_of
from tiny import CLASS_NAMES, LLAMAGEN, VQ_TOKENIZER, algorithm_of, tiny_config, tiny_llamagen

from sfumato.cli import main
from sfumato.engine.timing import PhaseTimer
from sfumato.families.library import build_generator, load, save_model
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.policy import Policy
from sfumato.rollout import Conditions
from sfumato.training.config import GRPOConfig
from sfumato.training.grpo import GRPO, Experience
from sfumato.training.requests import build_sampler
from sfumato.training.train import train

QUIET = Console(quiet=True)
REWARD = """
def wanted(images, conditions):
    assert all(data["loud"] in ("yes", "no") for data in conditions.metadata)
    sign = images.new_tensor([1.0 if data["loud"] == "yes" else -1.0 for data in conditions.metadata])
    return sign * images.mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamagen")
    save_model(folder, tiny_llamagen())
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that reads the bundled word vectors."""
    folder = tmp_path_factory.mktemp("llamagen-text")
    shape = replace(LLAMAGEN, num_classes=0, caption_width=64, num_caption_tokens=6, text_encoder="word-vectors")
    torch.manual_seed(0)
    generator = build_generator(shape, VQ_TOKENIZER, ())
    with torch.no_grad():
        for parameter in generator.transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.25)
    save_model(folder, generator)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [{"caption": f"{loud} {name}", "loud": loud} for name in CLASS_NAMES for loud in ("yes", "no")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "prompts.jsonl"


def test_a_run_on_classes(class_model: Path, tmp_path: Path):
    config = tiny_config(class_model, guidance=2.0, sample_every=1, save_every=1)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=1), tmp_path / "parts", console=QUIET)
    # A shorter run ends its schedule earlier; with the same rate throughout, going on makes it the longer one.
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    first = metrics_of(tmp_path / "whole")[0]
    assert first["ratio_mean"] == pytest.approx(1.0, abs=0.05)
    for name in ("before_after.png", "curves.png", "samples/step-000002.png"):
        with Image.open(tmp_path / "whole" / name) as picture:
            picture.verify()
    fixed = [json.loads(line) for line in (tmp_path / "whole/fixed_set.jsonl").read_text().splitlines()]
    assert [line["step"] for line in fixed] == [0, 1, 2]
    assert all(len(line["entropy_by_unit"]) == 9 for line in fixed)
    assert all(line["entropy"] == pytest.approx(sum(line["entropy_by_unit"]) / 9, abs=1e-3) for line in fixed)
    # At the start the fixed set's entropy is the base model's own.
    sampler = build_sampler(config, load(class_model).generator, torch.device("cpu"))
    rollout = load(class_model, guidance=2.0, temperature=0.7).sample(sampler.spread(16).repeat(2), torch.arange(32))
    assert fixed[0]["entropy"] == pytest.approx(rollout.entropy.mean().item(), abs=1e-5)


def test_a_run_on_captions(text_model: Path, prompts: Path, tmp_path: Path):
    (tmp_path / "r.py").write_text(REWARD)
    reward = {f"{tmp_path}/r.py:wanted": 1.0}
    config = tiny_config(text_model, reward=reward, prompts=str(prompts), guidance=2.0, eval_images=4)
    assert train(config, tmp_path / "run", console=QUIET)
    assert set(json.loads((tmp_path / "run/evaluation.json").read_text())) == {"before", "after"}
    out = tmp_path / "out.png"
    draw = ["sample", str(tmp_path / "run"), "--out", str(out)]
    assert main([*draw, "--prompts", "yes ant", "no bee", "--count", "3"]) == 0
    with Image.open(out) as picture:
        assert picture.size[0] > picture.size[1]
    assert main([*draw, "--prompts", str(prompts), "--count", "1"]) == 0
    assert main([*draw, "--prompts", "a caption of more letters than a file's name may have, " * 10]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "prompts: .* reads captions; give a file of them"),
        ({"classes": ("ant",)}, "classes: .* reads captions; give prompts instead"),
        ({"prompts": "nowhere.txt"}, r"prompts: nowhere\.txt is not a file"),
        ({"text_encoder": "nobody"}, "text_encoder: 'nobody' is neither"),
    ],
)
def test_captions_that_cannot_be_read(
    text_model: Path,
    prompts: Path,
    tmp_path: Path,
    changes: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    config = replace(tiny_config(text_model, prompts=str(prompts), text_cache=str(tmp_path / "cache")), **changes)
    if "text_encoder" not in changes:  # all else is seen before the weights are read
        monkeypatch.setattr("sfumato.training.train.load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_prompts_are_not_for_classes(class_model: Path, prompts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"prompts: .* draws classes, not captions"):
        train(tiny_config(class_model, prompts=str(prompts)), tmp_path / "run", console=QUIET)


def test_class_captions_follow_the_template(class_model: Path):
    config = tiny_config(class_model, caption_template="a drawing of the {name}, please")
    conditions = build_sampler(config, load(class_model).generator, torch.device("cpu")).spread(5)
    assert conditions.names == CLASS_NAMES
    assert conditions.captions[1] == "a drawing of the bee, please"


def experience(algorithm: GRPO) -> Experience:
    conditions = Conditions(labels=torch.tensor([0, 3]), names=("ant", "dog")).repeat(4)
    return algorithm.collect(conditions, torch.arange(8), PhaseTimer(torch.device("cpu")))[0]


def log_probs(model: Path, guidance: float, collected: Experience) -> torch.Tensor:
    policy = load(model, guidance=guidance, temperature=0.7)
    with torch.no_grad():
        return policy.log_probs(collected.rollout.conditions, collected.rollout.tokens)


def test_scores_are_of_the_guided_distribution(class_model: Path):
    collected = experience(algorithm_of(tiny_config(class_model, guidance=2.0)))
    guided, conditional = log_probs(class_model, 2.0, collected), log_probs(class_model, 1.0, collected)
    assert (guided - conditional).abs().max() > 0.5
    torch.testing.assert_close(collected.rollout.log_probs, guided, rtol=0, atol=1e-4)
    torch.testing.assert_close(collected.reference_log_probs, guided, rtol=0, atol=1e-4)


def test_scoring_the_conditional_distribution_alone(class_model: Path):
    """The fault of public code, as an ablation: guided samples, ratios and KL of the conditional distribution."""
    config = tiny_config(class_model, guidance=2.0, score_guidance=1.0)
    algorithm = algorithm_of(config)
    collected = experience(algorithm)
    conditional = log_probs(class_model, 1.0, collected)
    torch.testing.assert_close(collected.rollout.log_probs, conditional, rtol=0, atol=1e-5)
    torch.testing.assert_close(collected.reference_log_probs, conditional, rtol=0, atol=1e-5)
    assert isinstance(algorithm.scorer, Policy)
    assert algorithm.policy.generator.guidance == 2.0
    assert algorithm.scorer.generator.transformer is algorithm.policy.generator.transformer
    # The samples are the guided ones all the same, and on-policy ratios of 1 do not show the difference.
    assert torch.equal(
        collected.rollout.tokens, experience(algorithm_of(replace(config, score_guidance=None))).rollout.tokens
    )
    loss, stats = algorithm.loss(collected, torch.arange(8))
    assert stats.ratio.item() == pytest.approx(1.0, abs=1e-5)
    assert loss.requires_grad


def test_the_conditional_scores_are_those_of_the_update_in_bfloat16_too(class_model: Path):
    algorithm = algorithm_of(tiny_config(class_model, guidance=2.0, score_guidance=0.0, precision="bf16"))
    collected = experience(algorithm)
    with torch.no_grad(), algorithm.autocast():
        rescored = algorithm.scorer.log_probs(collected.rollout.conditions, collected.rollout.tokens)
    assert torch.equal(collected.rollout.log_probs, rescored)
    with torch.no_grad():
        wide = algorithm.scorer.log_probs(collected.rollout.conditions, collected.rollout.tokens)
    assert not torch.equal(wide, rescored)


def moved(config: GRPOConfig) -> float:
    """Share of the weights that an update changes."""
    algorithm = algorithm_of(config)
    before = [p.detach().clone() for p in algorithm.parameters]
    algorithm.update(experience(algorithm), torch.arange(8))
    changed = sum((a != b).sum().item() for a, b in zip(before, algorithm.parameters, strict=True))
    return changed / sum(p.numel() for p in before)


def test_small_learning_rates_move_the_weights_in_bfloat16(class_model: Path):
    """At 1e-5 an update is below the spacing of bfloat16 for most weights; the float32 masters take it all the same."""
    config = tiny_config(class_model, learning_rate=1e-5, final_learning_rate=1e-5, precision="bf16", guidance=2.0)
    share = moved(config)
    algorithm = algorithm_of(config)
    weights = torch.cat([p.detach().flatten() for p in algorithm.parameters])
    rounded_away = ((weights.bfloat16() - 1e-5).bfloat16() == weights.bfloat16()).float().mean().item()
    assert rounded_away > 0.9
    # What no image of the batch touches (other classes and tokens) gets no gradient and stays.
    untouched = 1 - moved(replace(config, learning_rate=1e-2, final_learning_rate=1e-2))
    assert share > 0.95 * (1 - untouched)
    assert share > 0.5


def test_llamagen_is_loaded_as_such(class_model: Path):
    assert isinstance(load(class_model).generator, LlamaGen)
