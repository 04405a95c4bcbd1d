"""Training of tiny language models that draw images: the same trainer, commands and run folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, metrics_of
from tiny import prompt_tokenizer, tiny_config, tiny_janus, tiny_simplear, trainer_of

from sfumato.cli.main import main
from sfumato.families import load_published
from sfumato.families.library import load_model, save_model
from sfumato.families.weight_files import read_state_dict
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
    assert {name for name in start if torch.equal(start[name], trained[name])} == {"text_embedding.weight"}


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
    embedding = torch.cat([trained["text_embedding.weight"], trained["code_embedding.weight"]])
    assert torch.equal(exported["model.embed_tokens.weight"], embedding)
    assert {name for name in start if torch.equal(start[name], trained[name])} == {"text_embedding.weight"}


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
    assert changed == {
        n
        for n in start.network.state_dict()
        if n.endswith(("qkv.weight", "proj.weight", "down.weight")) or "gate_up" in n
    }
