"""Judges by their name in a model's card: only the named judge is loaded."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from errors import bad_input
from rich.console import Console
from tiny import CLASS_NAMES, tiny_config, tiny_var

from sfumato.cli.main import main
from sfumato.data.prompts import Prompt
from sfumato.emoji import judges
from sfumato.emoji.judges import Classifier, ClassifierConfig
from sfumato.evaluation import judging
from sfumato.evaluation.asking import ask_prompts, names_to_ask
from sfumato.evaluation.judging import load_judge
from sfumato.families.library import load_generator, read_card, save_model
from sfumato.files import read_lines
from sfumato.training.train import train


@pytest.fixture
def no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything loads the bundled classifier of emoji, whatever the name of the import."""

    def fail(*arguments: object) -> Classifier:
        raise AssertionError("the classifier of emoji is loaded")

    monkeypatch.setattr(judges, "_load", fail)
    monkeypatch.setattr(judging, "JUDGES", dict.fromkeys(judging.JUDGES, fail))


@pytest.fixture
def judged_model(tmp_path: Path) -> Path:
    """A tiny generator whose card names the judge of emoji."""
    generator = tiny_var()
    generator.card = dataclasses.replace(generator.card, judge="emoji")
    save_model(tmp_path / "judged", generator)
    return tmp_path / "judged"


def run(model: Path, folder: Path) -> tuple[dict, list[dict[str, float]]]:
    """Train a run with all judge-based measurements; return `evaluation.json` and the lines of `held_out.jsonl`."""
    config = tiny_config(model, eval_images=6, held_out=("darkness",), held_out_every=1)
    assert train(config, folder, console=Console(quiet=True))
    return json.loads((folder / "evaluation.json").read_text()), read_lines(folder / "held_out.jsonl")


def test_training_without_a_judge(no_classifier: None, tiny_model: Path, tmp_path: Path):
    assert read_card(str(tiny_model)).judge is None
    before_after, held_out = run(tiny_model, tmp_path / "run")
    assert before_after.keys() == {"before", "after"}
    assert before_after["after"].keys() == {"images", "reward_mean", "reward/brightness"}
    assert [line["step"] for line in held_out] == [0, 1, 2]
    for line in held_out:
        assert "reward/darkness" in line
        assert not [name for name in line if "accuracy" in name or "diversity" in name]


def test_training_with_a_judge(judged_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Classifier(ClassifierConfig(num_classes=len(CLASS_NAMES), widths=(4, 6)), CLASS_NAMES).eval()
    monkeypatch.setattr(judging, "JUDGES", {"emoji": lambda: made})
    before_after, held_out = run(judged_model, tmp_path / "run")
    assert {"class_accuracy_top1", "class_accuracy_top5"} <= before_after["after"].keys()
    assert {"class_accuracy", "diversity"} <= held_out[-1].keys()


def test_the_classifier_would_be_missed(no_classifier: None, judged_model: Path, tmp_path: Path):
    """The fixture that the other tests rely on works."""
    with pytest.raises(AssertionError, match="classifier of emoji"):
        run(judged_model, tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        ["entropy", "--images", "4"],
        ["alignment", "--per-class", "1", "--classifier", "None", "--rewards", "brightness"],
        ["guidance-sweep", "--of", "entropy", "--images", "2", "--values", "0", "1"],
    ],
)
def test_evaluation_without_a_judge(no_classifier: None, tiny_model: Path, tmp_path: Path, options: list[str]):
    suite = ["--suite", *options, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["evaluate", str(tiny_model), *suite]) == 0


def test_evaluation_of_captions_without_a_judge(no_classifier: None, text_model: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a red apple\nan octopus\n")
    suite = ["--suite", "drawbench", "--prompts", str(tmp_path / "prompts.txt"), "--rewards", "brightness"]
    assert main(["evaluate", str(text_model), *suite, "--per-prompt", "1", "--device", "cpu"]) == 0
    generator = load_generator(text_model)
    assert ask_prompts(generator, [Prompt("an owl")]).captions == ("an owl",)
    with bad_input("target"):
        names_to_ask(generator)


@pytest.mark.parametrize(("judge", "loaded"), [(None, 0), ("emoji", 1)])
def test_only_the_named_judge(monkeypatch: pytest.MonkeyPatch, judge: str | None, loaded: int):
    calls: list[str] = []

    def noted(name: str) -> Callable[[], Classifier]:
        def load() -> Classifier:
            calls.append(name)
            return Classifier(ClassifierConfig(num_classes=2, widths=(4,)), ("a", "b"))

        return load

    monkeypatch.setattr(judging, "JUDGES", {name: noted(name) for name in ("emoji", "others")})
    assert (load_judge(judge) is not None) == bool(loaded)
    assert calls == ["emoji"] * loaded


def test_unknown_judge():
    with bad_input("judge", "'nobody'", "emoji"):
        load_judge("nobody")
