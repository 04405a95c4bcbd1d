"""A reward, an objective and a family in files outside the package: training, loading, resuming and evaluation."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, metrics_of

import sfumato
from sfumato.cli.main import main, parse
from sfumato.engine.engine_config import EngineConfig
from sfumato.families import find_family, load_generator
from sfumato.families.library import load_model, save_model
from sfumato.objectives import find_objective, name_of
from sfumato.policy import Generator, Policy
from sfumato.settings import Settings
from sfumato.testing import class_request
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig, to_json

EXAMPLES = Path(__file__).parents[1] / "examples"
BIGRAM, REINFORCE, REDNESS = (
    f"{EXAMPLES}/{name}" for name in ("bigram.py:build", "reinforce.py:Reinforce", "redness.py:redness")
)
QUIET = Console(quiet=True)


def own_config(**changes: object) -> TrainConfig:
    """Return the config of a run with all three."""
    config = TrainConfig(
        model=BIGRAM,
        reward={REDNESS: 1.0},
        objective=find_objective(REINFORCE)(scale=30.0),
        policy=Settings(),
        engine=EngineConfig(learning_rate=0.1, final_learning_rate=0.1),
        classes=("red apple", "octopus"),
        steps=8,
        groups_per_step=2,
        group_size=8,
        minibatch_size=16,
        save_every=4,
        sample_every=8,
        eval_images=8,
        device="cpu",
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("own") / "run"
    assert train(own_config(), folder, console=QUIET)
    return folder


def test_all_three_are_trained(run: Path):
    metrics = metrics_of(run)
    rewards = [line["reward_mean"] for line in metrics]
    # The standard error of a step's mean is a quarter of the standard deviation over its 16 images.
    assert rewards[-1] - rewards[0] > metrics[0]["reward_std"]
    assert "log_prob" in metrics[0]
    assert not {"kl", "ratio_mean", "clip_fraction"} & metrics[0].keys()
    assert json.loads((run / "evaluation.json").read_text())["after"].keys() >= {"class_accuracy_top1"}
    assert json.loads((run / "config.json").read_text())["objective"] == {"name": REINFORCE, "scale": 30.0}


def test_resumed_equals_uninterrupted(run: Path, tmp_path: Path):
    half = own_config(steps=4)
    assert train(half, tmp_path / "run", console=QUIET)
    assert train(own_config(), tmp_path / "run", resume=True, console=QUIET)
    assert_same_run(tmp_path / "run", run, 8)


def test_loaded_back(run: Path):
    trained, fresh = load_generator(run), find_family(BIGRAM).build({})
    assert isinstance(trained, Generator)
    assert trained.card.family == BIGRAM
    difference = trained.network.state_dict()["head.bias"] - fresh.network.state_dict()["head.bias"]
    assert difference.abs().max() > 1e-3
    policy = sfumato.load(run)
    request = class_request([3, 500])
    rollout = policy.sample(request, torch.tensor([1, 2]))
    torch.testing.assert_close(policy.log_probs(request, rollout.tokens), rollout.log_probs, rtol=0, atol=1e-5)
    assert policy.decode(rollout.tokens).shape == (2, 3, 64, 64)
    # A generator with another network does not change the original generator.
    twin = trained.with_network(fresh.network)
    assert twin.network is fresh.network
    assert trained.network is not fresh.network
    assert Policy(twin).log_probs(request, rollout.tokens).sum() != rollout.log_probs.sum()


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sample", str(run), "--classes", "red apple", "--count", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert main(["classes", BIGRAM]) == 0
    assert "red apple" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--images", "4"]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main(["sample", BIGRAM, "--guidance", "2", "--out", str(tmp_path / "b.png")]) == 2
    assert capsys.readouterr().err.startswith("sfumato: guidance: 2.0 ")
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("sfumato: model: ")


def test_options_of_an_own_objective(capsys: pytest.CaptureFixture[str]):
    command = parse(["train", "emoji-dark", "--objective", REINFORCE, "--objective.scale", "2.5"])
    objective = command.config.objective  # pyright: ignore[reportFunctionMemberAccess, reportOptionalMemberAccess]
    assert type(objective).__name__ == "Reinforce"
    assert objective.scale == 2.5
    assert not objective.needs_reference
    config = own_config()
    assert name_of(config.objective) == REINFORCE
    assert to_json(config)["objective"] == {"name": REINFORCE, "scale": 30.0}
    with bad_input("Unrecognized"):
        parse(["train", "emoji-dark", "--objective", REINFORCE, "--objective.clip", "0.1"])


def test_a_relative_path_is_kept_as_an_absolute_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLES)
    objective = find_objective("reinforce.py:Reinforce")()
    assert name_of(objective) == REINFORCE
    monkeypatch.chdir("/")
    assert name_of(objective) == REINFORCE


def test_saving_does_not_run_the_file_again(tmp_path: Path):
    file = tmp_path / "family.py"
    file.write_text((EXAMPLES / "bigram.py").read_text())
    generator = load_generator(f"{file}:build")
    file.write_text("a half-written line (")
    save_model(tmp_path / "model", generator)
    with bad_input("model", "family.py"):
        load_generator(tmp_path / "model")


def test_wrong_names(tmp_path: Path):
    with bad_input("objective", "'gpro'", "grpo"):
        find_objective("gpro")
    with bad_input("objective", "nothing.py"):
        find_objective(f"{tmp_path}/nothing.py:Objective")
    (tmp_path / "empty.py").write_text("def build(): ...\nvalue = 3\n")
    with bad_input("objective", "'Objective'", "build"):
        find_objective(f"{tmp_path}/empty.py:Objective")
    with bad_input("objective", "credit"):
        find_objective(f"{tmp_path}/empty.py:build")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with bad_input("model", "nothing_of_this_name"):
        load_generator(f"{tmp_path}/broken.py:build")


class EntryPoint:
    """Substitute for the entry point of a package that registers a family."""

    name = "own"

    @staticmethod
    def load() -> object:
        return replace(find_family(BIGRAM), name="own")


def test_a_family_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def entry_points(group: str, name: str = "own") -> list[type[EntryPoint]]:
        return [EntryPoint] if (group, name) == ("sfumato.families", "own") else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    generator = find_family("own").build({})
    generator.card = replace(generator.card, family="own")
    save_model(tmp_path / "model", generator)
    assert json.loads((tmp_path / "model/config.json").read_text())["family"] == "own"
    assert load_model(tmp_path / "model").card == generator.card
    with bad_input("model", "'other'"):
        find_family("other")


def test_a_loop_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    align = importlib.import_module("own_loop").align
    rewards = align(tmp_path / "darker.png", steps=5, group_size=8)
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.05  # darkness; 0.45 at the start
    with Image.open(tmp_path / "darker.png") as picture:
        assert picture.size[0] > 8 * 128
