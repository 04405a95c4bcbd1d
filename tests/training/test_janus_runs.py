"""Training of tiny language models that draw images: the same trainer, commands and run folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, metrics_of
from tiny import VQ_TOKENIZER, prompt_tokenizer, tiny_config, tiny_janus, tiny_reasoning, tiny_simplear, trainer_of

from sfumato.cli.main import main
from sfumato.families import load_published
from sfumato.families.janus.reasoning import END, ReasoningJanus
from sfumato.families.library import load_model, save_model
from sfumato.families.vq import VQModel
from sfumato.families.weight_files import read_state_dict
from sfumato.objectives import GRPO
from sfumato.objectives.prefix import PrefixGRPO
from sfumato.objectives.reasoning_grpo import ReasoningGRPO
from sfumato.training.plan import make_plan
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig

QUIET = Console(quiet=True)
CAPTIONS = ("a bright ant", "the dark old bee", "cat", "elk")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with its text tokenizer, and the captions for it."""
    folder = tmp_path_factory.mktemp("janus")
    save_model(folder, tiny_janus(prompt_tokenizer(folder)))
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return folder


def config_of(model: Path, **changes: object) -> TrainConfig:
    return tiny_config(model, prompts=str(model / "captions.txt"), guidance=3.0, temperature=1.0, **changes)


def test_a_run_from_training_to_export(model: Path, tmp_path: Path):
    config = config_of(model, sample_every=1, save_every=1)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=1), tmp_path / "parts", console=QUIET)
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    assert metrics_of(tmp_path / "whole")[0]["ratio_mean"] == pytest.approx(1.0, abs=0.05)
    draw = ["sample", str(tmp_path / "whole"), "--out", str(tmp_path / "out.png"), "--count", "2"]
    assert main([*draw, "--prompts", "a bee", "the old cat", "--top-k", "5"]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size[0] >= 24
    measure = ["evaluate", str(tmp_path / "whole"), "--suite", "entropy"]
    assert main([*measure, "--prompts", str(model / "captions.txt"), "--images", "4"]) == 0
    assert main(["export", str(tmp_path / "whole"), "--out", str(tmp_path / "exported")]) == 0
    exported = load_published(
        "janus", read_state_dict(tmp_path / "exported/janus.pth"), num_heads=2, grid_size=3, norm_groups=4
    )
    trained = load_model(tmp_path / "whole/checkpoints/step-000002/model").network.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in exported.network.state_dict().items())
    start = load_model(model).network.state_dict()
    assert {name for name in start if torch.equal(start[name], trained[name])} == {"model.embed_tokens.weight"}


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder like `model`, of one that writes a text before the image."""
    folder = tmp_path_factory.mktemp("reasoning")
    save_model(folder, tiny_reasoning(prompt_tokenizer(folder, END)))
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return folder


def test_a_run_with_texts(reasoning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    objective = ReasoningGRPO(kl_weight=0.1, text_kl_weight=0.2)
    config = config_of(reasoning, objective=objective, sample_every=1, save_every=1, logit_positions=4)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=1), tmp_path / "parts", console=QUIET)
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    for row in metrics_of(tmp_path / "whole"):
        assert row["ratio_mean"] == pytest.approx(1.0, abs=0.05)
        assert 1 < row["tokens/text"] < 8
        assert row["tokens/image"] == 9
        assert 0 < row["entropy/text"] < 3  # log 20
        assert 0 < row["entropy/image"] < 2.8  # log 16
        assert row["kl/text"] >= 0
        assert row["kl/image"] >= 0
    first, *_, last = (json.loads(line) for line in (tmp_path / "whole/fixed_set.jsonl").read_text().splitlines())
    assert len(first["texts"]) == len(first["names"])
    assert first["texts"] != last["texts"]
    trained = load_model(tmp_path / "whole/checkpoints/step-000002/model")
    start = load_model(reasoning).network.state_dict()
    same = {name for name, tensor in trained.network.state_dict().items() if torch.equal(start[name], tensor)}
    assert same == {"model.embed_tokens.weight"}
    capsys.readouterr()
    draw = ["sample", str(tmp_path / "whole"), "--count", "2", "--prompts", "a bee", "the old cat"]
    assert main([*draw, "--out", str(tmp_path / "out.png")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert (tmp_path / "out.txt").read_text().splitlines() == shown[:4]
    assert [line.split(":")[0] for line in shown[:4]] == [
        "a bee, seed 0", "a bee, seed 1", "the old cat, seed 2", "the old cat, seed 3"
    ]  # fmt: skip
    assert main([*draw, "--out", str(tmp_path / "folder")]) == 0
    assert shown[1] == f"a bee, seed 1: {(tmp_path / 'folder/a-bee-1.txt').read_text()}".rstrip()
    assert (tmp_path / "folder/the-old-cat-3.png").exists()
    assert main(["export", str(tmp_path / "whole"), "--out", str(tmp_path / "exported")]) == 0
    exported = read_state_dict(tmp_path / "exported/janus.pth")
    assert torch.equal(exported["language_model.lm_head.weight"], trained.network.state_dict()["text_head.weight"])


def test_texts_learn_with_any_objective(reasoning: Path):
    """Here GRPO, with groups drawn again, and chosen among candidates."""
    for changes in ({"redraws": 1}, {"candidates": 6}):
        trainer = trainer_of(config_of(reasoning, objective=GRPO(kl_weight=0.1), **changes))
        start = trainer.policy.generator.network.state_dict()["text_head.weight"].clone()
        seen = trainer.step(0)
        assert seen["kl/text"] >= 0
        assert not torch.equal(trainer.policy.generator.network.state_dict()["text_head.weight"], start)


def test_the_objective_of_texts_needs_texts(model: Path, reasoning: Path):
    with bad_input("objective", "reasoning-grpo", "janus-pro-1b-reasoning"):
        trainer_of(config_of(model, objective=ReasoningGRPO()))
    with bad_input("objective", "whole images only"):
        trainer_of(config_of(reasoning, objective=PrefixGRPO(units=1)))


def test_a_plan_with_texts(reasoning: Path):
    plan = make_plan(config_of(reasoning, objective=ReasoningGRPO(), logit_positions=4))
    assert set(plan.phases) == {"sample", "decode", "reference", "update"}
    assert all(phase.flops > 0 for phase in plan.phases.values())


def test_a_plan_that_draws_an_excerpt(reasoning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few units of text and image are drawn; memory and work are those of all."""
    generator = tiny_reasoning(str(reasoning))
    shape = replace(generator.config, num_reasoning_tokens=16)
    save_model(tmp_path, ReasoningJanus(shape, VQModel(replace(VQ_TOKENIZER, grid_size=5))))
    config, plans = config_of(reasoning, objective=ReasoningGRPO(), logit_positions=4), []
    for executed in (10, 1000):
        monkeypatch.setattr("sfumato.training.plan.EXECUTED", executed)
        plans.append(make_plan(replace(config, model=str(tmp_path))))
    few, whole = (plan.phases for plan in plans)
    assert few["sample"].kernels == whole["sample"].kernels
    assert few["sample"].peak == pytest.approx(whole["sample"].peak, rel=0.01)
    assert few["sample"].flops == pytest.approx(whole["sample"].flops, rel=0.01)
    assert few["update"] == whole["update"]


def test_a_run_of_the_other_language_model(tmp_path: Path):
    """SimpleAR, whose image codes are in the vocabulary of the text."""
    generator = tiny_simplear(prompt_tokenizer(tmp_path))
    save_model(tmp_path, generator)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    config = config_of(tmp_path, save_every=1, logit_positions=4)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=1), tmp_path / "parts", console=QUIET)
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    assert metrics_of(tmp_path / "whole")[0]["ratio_mean"] == pytest.approx(1.0, abs=0.05)
    draw = ["sample", str(tmp_path / "whole"), "--out", str(tmp_path / "out.png"), "--count", "1"]
    assert main([*draw, "--prompts", "a bee", "--guidance", "2"]) == 0
    measure = ["evaluate", str(tmp_path / "whole"), "--suite", "entropy", "--images", "4"]
    assert main([*measure, "--prompts", str(tmp_path / "captions.txt")]) == 0
    assert main(["export", str(tmp_path / "whole"), "--out", str(tmp_path / "exported")]) == 0
    exported = read_state_dict(tmp_path / "exported/simplear.pth")
    trained = load_model(tmp_path / "whole/checkpoints/step-000002/model").network.state_dict()
    start = generator.network.state_dict()
    embedding = torch.cat([trained["model.embed_tokens.weight"], trained["code_embedding.weight"]])
    assert torch.equal(exported["model.embed_tokens.weight"], embedding)
    assert {name for name in start if torch.equal(start[name], trained[name])} == {"model.embed_tokens.weight"}


def test_guided_images_scored_without_guidance(model: Path):
    """The ablation of the public practice: log-probabilities are not those of the distribution that was drawn from."""
    words = trainer_of(config_of(model)).rollouts.sampler.next(2, torch.Generator().manual_seed(0)).repeat(4)
    differences = []
    for changes in ({}, {"score_guidance": 0.0}):
        trainer = trainer_of(config_of(model, minibatch_size=8, **changes))
        batch, credit = trainer.collect(trainer.policy.request(words))
        assert batch.reference_log_probs is not None
        assert (batch.rollout.log_probs - batch.reference_log_probs).abs().max() < 1e-4  # it scores as the policy does
        with torch.no_grad():
            guided = trainer.policy.log_probs(batch.rollout.request, batch.rollout.tokens)
        differences.append((batch.rollout.log_probs - guided).abs().mean().item())
        stats = trainer.update(batch, credit, torch.arange(8))
        assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert differences[0] < 1e-4
    assert differences[1] > 0.1


def test_adapters(model: Path, tmp_path: Path):
    pytest.importorskip("peft")
    config = config_of(model, lora_rank=2, steps=1, save_every=1, activation_checkpointing=1)
    assert train(config, tmp_path / "run", console=QUIET)
    trained, start = load_model(tmp_path / "run/checkpoints/step-000001/model"), load_model(model)
    changed = {n for n, t in start.network.state_dict().items() if not torch.equal(t, trained.network.state_dict()[n])}
    assert changed == {n for n in start.network.state_dict() if n.endswith("_proj.weight")}
