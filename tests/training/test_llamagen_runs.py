"""Training of tiny next-token generators on classes and on captions: the same trainer, commands and run folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, lines_of, metrics_of
from tiny import CLASS_NAMES, LLAMAGEN, VQ_TOKENIZER, Trainer, tiny_config, tiny_llamagen, tiny_request, trainer_of

from sfumato.cli.main import main
from sfumato.families import load
from sfumato.families.library import save_model
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.vq import VQModel
from sfumato.policy import Card, Policy
from sfumato.rollout import Batch
from sfumato.settings import Settings
from sfumato.training.requests import build_sampler
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig

QUIET = Console(quiet=True)
REWARD = """
def wanted(images, words):
    assert all(data["loud"] in ("yes", "no") for data in words.metadata)
    sign = images.new_tensor([1.0 if data["loud"] == "yes" else -1.0 for data in words.metadata])
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
    generator = LlamaGen(shape, VQModel(VQ_TOKENIZER), Card(family="llamagen"))
    with torch.no_grad():
        for parameter in generator.network.parameters():
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
    # A shorter run ends its schedule earlier. With a constant rate, resuming it gives the same run as the longer one.
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    first = metrics_of(tmp_path / "whole")[0]
    assert first["ratio_mean"] == pytest.approx(1.0, abs=0.05)
    for name in ("before_after.png", "curves.png", "samples/step-000002.png"):
        with Image.open(tmp_path / "whole" / name) as picture:
            picture.verify()
    fixed = lines_of(tmp_path / "whole/fixed_set.jsonl")
    assert [line["step"] for line in fixed] == [0, 1, 2]
    assert all(len(line["entropy_by_unit"]) == 9 for line in fixed)
    assert all(line["entropy"] == pytest.approx(sum(line["entropy_by_unit"]) / 9, abs=1e-3) for line in fixed)
    # At the start, the entropy on the fixed set is that of the base model.
    policy = load(class_model, guidance=2.0, temperature=0.7)
    words = build_sampler(config, policy.generator, torch.device("cpu")).spread(16).repeat(2)
    rollout = policy.sample(policy.request(words), torch.arange(32))
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
    ("changes", "field", "piece"),
    [
        ({"prompts": None}, "prompts", ".jsonl"),
        ({"classes": ("ant",)}, "classes", "prompts"),
        ({"prompts": "nowhere.txt"}, "prompts", "nowhere.txt"),
        ({"text_encoder": "nobody"}, "text_encoder", "'nobody'"),
    ],
)
def test_captions_that_cannot_be_read(
    text_model: Path,
    prompts: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    field: str,
    piece: str,
    monkeypatch: pytest.MonkeyPatch,
):
    config = replace(tiny_config(text_model, prompts=str(prompts), text_cache=str(tmp_path / "cache")), **changes)
    if "text_encoder" not in changes:  # all other errors are detected before the weights are read
        refuse = "sfumato.training.train.load_generator"
        monkeypatch.setattr(refuse, lambda *_, **__: pytest.fail("the model was loaded"))
    with bad_input(field, piece):
        train(config, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_prompts_are_not_for_classes(class_model: Path, prompts: Path, tmp_path: Path):
    with bad_input("prompts", str(class_model), "classes"):
        train(tiny_config(class_model, prompts=str(prompts)), tmp_path / "run", console=QUIET)


def test_class_captions_follow_the_template(class_model: Path):
    config = tiny_config(class_model, caption_template="a drawing of the {name}, please")
    words = build_sampler(config, load(class_model).generator, torch.device("cpu")).spread(5)
    assert words.names == CLASS_NAMES
    assert words.captions[1] == "a drawing of the bee, please"


def collected(trainer: Trainer) -> Batch:
    return trainer.collect(tiny_request([0, 3]).repeat(4))[0]


def log_probs(model: Path, guidance: float | None, batch: Batch) -> torch.Tensor:
    policy = load(model, guidance=guidance, temperature=0.7)
    with torch.no_grad():
        return policy.log_probs(batch.rollout.request, batch.rollout.tokens)


def test_scores_are_of_the_guided_distribution(class_model: Path):
    batch = collected(trainer_of(tiny_config(class_model, guidance=2.0)))
    guided, conditional = log_probs(class_model, 2.0, batch), log_probs(class_model, 1.0, batch)
    assert (guided - conditional).abs().max() > 0.5
    torch.testing.assert_close(batch.rollout.log_probs, guided, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.reference_log_probs, guided, rtol=0, atol=1e-4)


def test_scoring_the_conditional_distribution_alone(class_model: Path):
    """An ablation with a bug of public code: guided samples, but ratios and KL of the conditional distribution."""
    config = tiny_config(class_model, guidance=2.0, score_guidance=1.0)
    trainer = trainer_of(config)
    batch, credit = trainer.collect(tiny_request([0, 3]).repeat(4))
    conditional = log_probs(class_model, 1.0, batch)
    torch.testing.assert_close(batch.rollout.log_probs, conditional, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_log_probs, conditional, rtol=0, atol=1e-5)
    scorer = trainer.engine.scorer
    assert isinstance(scorer, Policy)
    assert trainer.policy.settings == Settings(guidance=2.0, temperature=0.7)
    assert scorer.settings == Settings(guidance=1.0, temperature=0.7)
    assert scorer.generator.network is trainer.policy.generator.network
    with trainer.engine.reference() as reference:
        assert reference.settings == scorer.settings
    # The samples are still guided, and on-policy ratios of 1 do not reveal the difference.
    plain = collected(trainer_of(replace(config, score_guidance=None)))
    assert torch.equal(batch.rollout.tokens, plain.rollout.tokens)
    assert scorer.log_probs(batch.rollout.request, batch.rollout.tokens).requires_grad
    stats = trainer.update(batch, credit, torch.arange(8))
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-5)


def test_the_conditional_scores_are_those_of_the_update_in_bfloat16_too(class_model: Path):
    trainer = trainer_of(tiny_config(class_model, guidance=2.0, score_guidance=0.0, precision="bf16"))
    rollout, engine = collected(trainer).rollout, trainer.engine
    with torch.no_grad(), engine.autocast():
        rescored = engine.scorer.log_probs(rollout.request, rollout.tokens)
    assert torch.equal(rollout.log_probs, rescored)
    with torch.no_grad():
        wide = engine.scorer.log_probs(rollout.request, rollout.tokens)
    assert not torch.equal(wide, rescored)


def moved(config: TrainConfig) -> float:
    """Return the share of the weights that an update changes."""
    trainer = trainer_of(config)
    parameters = trainer.engine.parameters
    before = [p.detach().clone() for p in parameters]
    trainer.update(*trainer.collect(tiny_request([0, 3]).repeat(4)), torch.arange(8))
    changed = sum((a != b).sum().item() for a, b in zip(before, parameters, strict=True))
    return changed / sum(p.numel() for p in before)


def test_small_learning_rates_move_the_weights_in_bfloat16(class_model: Path):
    """At 1e-5, an update is below the spacing of bfloat16 for most weights, but the float32 weights still change."""
    rates = {"learning_rate": 1e-5, "final_learning_rate": 1e-5}
    config = tiny_config(class_model, precision="bf16", guidance=2.0, **rates)
    share = moved(config)
    weights = torch.cat([p.detach().flatten() for p in trainer_of(config).engine.parameters])
    rounded_away = ((weights.bfloat16() - 1e-5).bfloat16() == weights.bfloat16()).float().mean().item()
    assert rounded_away > 0.9
    # Weights that no image of the batch uses (other classes and tokens) get no gradient and do not change.
    larger = replace(config, engine=replace(config.engine, learning_rate=1e-2, final_learning_rate=1e-2))
    untouched = 1 - moved(larger)
    assert share > 0.95 * (1 - untouched)
    assert share > 0.5


def test_llamagen_is_loaded_as_such(class_model: Path):
    assert isinstance(load(class_model).generator, LlamaGen)
