"""Training of a tiny bitwise generator on captions: the same trainer, commands and run folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, lines_of, metrics_of
from tiny import BSQ_TOKENIZER, tiny_config, tiny_infinity, trainer_of

from sfumato.cli.main import main
from sfumato.data.prompts import find_prompts, prompt_words, read_prompts
from sfumato.emoji.judges import load_classifier
from sfumato.families import load, load_published
from sfumato.families.library import load_model, save_model
from sfumato.families.weight_files import read_state_dict
from sfumato.objectives import GRPO
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig

QUIET = Console(quiet=True)
CAPTIONS = ("a bright ant", "the dark old bee", "cat", "elk")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that reads the bundled word vectors, and the captions for it."""
    folder = tmp_path_factory.mktemp("infinity")
    save_model(folder, tiny_infinity(words=True))
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return folder


def config_of(model: Path, **changes: object) -> TrainConfig:
    config = tiny_config(model, prompts=str(model / "captions.txt"), guidance=3.0, temperature=1.0, **changes)
    return replace(config, objective=GRPO(clip=0.2, kl_weight=0.1, kl="exact"))


@pytest.mark.parametrize("name", ["emoji-infinity-dark", "emoji-infinity-clip"])
def test_runs_of_the_bundled_recipes(name: str, tmp_path: Path):
    recipe = TRAIN_RECIPES[name].build()
    config = replace(
        recipe,
        steps=1,
        groups_per_step=2,
        group_size=2,
        minibatch_size=2,
        eval_images=0,
        sample_every=100,
        device="cpu",
    )
    assert train(config, tmp_path / "run", console=QUIET)
    (line,) = metrics_of(tmp_path / "run")
    assert line["grad_norm"] > 0
    assert line["kl"] >= 0
    assert line["mismatch/mean"] < 1e-5
    total = sum(weight * line[f"reward/{reward}"] for reward, weight in recipe.reward.items())
    assert line["reward_mean"] == pytest.approx(total, abs=1e-5)


def test_the_bundled_model_draws_what_captions_say():
    """46 of these 64 pictures are recognized; one of 512 classes would be by chance."""
    prompts = read_prompts(find_prompts("emoji-captions-held-out"))[::8]
    policy, judge = load("emoji-infinity"), load_classifier()
    images = policy.draw(policy.request(prompt_words(prompts)), torch.arange(64))
    named = [judge.class_names[number] for number in judge(images).argmax(-1).tolist()]
    assert sum(name == prompt.metadata["class"] for name, prompt in zip(named, prompts, strict=True)) >= 42


def test_a_run_from_training_to_export(model: Path, tmp_path: Path):
    config = config_of(model, sample_every=1, save_every=1)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=1), tmp_path / "parts", console=QUIET)
    assert train(config, tmp_path / "parts", resume=True, console=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 2)
    first = metrics_of(tmp_path / "whole")[0]
    assert first["ratio_mean"] == pytest.approx(1.0, abs=0.05)
    assert 0 <= first["kl"] < 0.1
    fixed = lines_of(tmp_path / "whole/fixed_set.jsonl")
    assert all(len(line["entropy_by_unit"]) == 3 for line in fixed)
    assert all(0 < entropy <= 0.6932 for line in fixed for entropy in line["entropy_by_unit"])  # log 2 is the largest
    out = tmp_path / "out.png"
    draw = ["sample", str(tmp_path / "whole"), "--out", str(out)]
    assert main([*draw, "--prompts", "a bee", "the old cat", "--count", "2", "--top-p", "0.97"]) == 0
    with Image.open(out) as picture:
        assert picture.size[0] >= 24
    assert main(["export", str(tmp_path / "whole"), "--out", str(tmp_path / "exported")]) == 0
    network, tokenizer = (
        read_state_dict(tmp_path / f"exported/{name}.pth", field)
        for name, field in (("infinity", "weights"), ("vae", "tokenizer"))
    )
    exported = load_published(
        "infinity", network, tokenizer, num_heads=2, scales=BSQ_TOKENIZER.scales, rotary_grid=(3, 3), norm_groups=4
    )
    trained = load_model(tmp_path / "whole/checkpoints/step-000002/model").network.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in exported.network.state_dict().items())
    start = load_model(model).network.state_dict()
    assert sum(not torch.equal(tensor, start[name]) for name, tensor in trained.items()) == len(start)
    assert "vocabulary" not in json.loads((tmp_path / "whole/checkpoints/step-000002/model/config.json").read_text())


def test_ratios_and_the_exact_kl(model: Path):
    """The first update is on policy: ratios of 1 and no KL, guidance and all."""
    trainer = trainer_of(config_of(model))
    words = trainer.rollouts.sampler.next(2, torch.Generator().manual_seed(0)).repeat(4)
    request = trainer.policy.request(words)
    batch, credit = trainer.collect(request)
    assert batch.reference_log_probs is not None
    torch.testing.assert_close(batch.rollout.log_probs, batch.reference_log_probs, rtol=0, atol=1e-4)
    stats = trainer.update(batch, credit, torch.arange(8))
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert stats["kl"] == pytest.approx(0.0, abs=1e-6)
    stats = trainer.update(batch, credit, torch.arange(8))
    assert stats["kl"] > 1e-6
