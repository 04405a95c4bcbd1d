"""Held-out rewards and measured thresholds, in runs of the tiny generator."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from run_folders import lines_of
from tiny import tiny_config, tiny_var

from sfumato.emoji.judges import load_classifier
from sfumato.families.library import save_model
from sfumato.training.hooks.held_out import diversity, hacking_signs
from sfumato.training.train import train

FIRST = {
    "step": 0, "optimized": 1.0, "optimized_std": 0.2, "reward/a": 3.0, "reward_std/a": 0.4, "class_accuracy": 0.5,
    "diversity": 2.0, "entropy": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "signs"),
    [
        ({"optimized": 1.11}, []),
        ({"optimized": 1.09, "reward/a": 0.0}, []),
        ({"optimized": 1.11, "reward/a": 2.91}, []),
        ({"optimized": 1.11, "reward/a": 2.89}, ["a fell from 3.000 to 2.890"]),
        ({"optimized": 1.11, "class_accuracy": 0.44}, ["class_accuracy fell from 0.500 to 0.440"]),
        ({"optimized": 2.0, "diversity": 1.0, "entropy": 0.8}, ["diversity fell from", "entropy fell from"]),
        ({"optimized": 2.0, "reward/a": 9.0, "entropy": 0.95}, []),
    ],
)
def test_signs_of_hacking(now: dict[str, float], signs: list[str]):
    actual = hacking_signs(FIRST, {**FIRST, **now})
    assert len(actual) == len(signs)
    assert all(text.startswith(sign) for text, sign in zip(actual, signs, strict=True))


def test_diversity_by_hand():
    # In the first condition, the distances are 5, 10 and 5; in the second, all images are the same.
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [7.0, 7.0], [7.0, 7.0], [7.0, 7.0]])
    assert diversity(features, 3) == pytest.approx((20 / 3 + 0) / 2, abs=1e-3)


@pytest.fixture(scope="module")
def judged_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator with a judge that does not know its classes."""
    return save_judged(tmp_path_factory.mktemp("judged"), ())


def save_judged(folder: Path, class_names: tuple[str, ...]) -> Path:
    generator = tiny_var()
    names = class_names or generator.card.class_names
    generator.card = replace(generator.card, judge="emoji", class_names=names)
    save_model(folder, generator)
    return folder


def run(folder: Path, model: Path, **changes: Any) -> tuple[list[dict], str]:
    """Train, and return the metrics of the run and its output."""
    console = Console(file=(folder.parent / f"{folder.name}.txt").open("w+"), width=200)
    train(tiny_config(model, held_out_every=2, **changes), folder, console=console)
    console.file.close()
    return lines_of(folder / "metrics.jsonl"), (folder.parent / f"{folder.name}.txt").read_text()


def test_held_out_rewards_are_logged_and_not_optimized(judged_model: Path, tmp_path: Path):
    plain, _ = run(tmp_path / "plain", judged_model, steps=3)
    watched, _ = run(tmp_path / "watched", judged_model, steps=3, held_out=("colorfulness", "dark"))
    assert [line["reward_mean"] for line in plain] == [line["reward_mean"] for line in watched]
    assert [("held_out/diversity" in line) for line in watched] == [False, True, True]
    names = ("reward/colorfulness", "reward/dark", "entropy", "optimized", "diversity")
    assert {name for name in watched[1] if "held_out" in name} == {f"held_out/{name}" for name in names}
    rows = lines_of(tmp_path / "watched/held_out.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert rows[0]["diversity"] > 0
    with Image.open(tmp_path / "watched/held_out.png") as picture:
        assert picture.width > 1000
    assert not (tmp_path / "plain/held_out.png").exists()
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_without_a_judge_rewards_and_entropy_are_watched(tiny_model: Path, tmp_path: Path):
    run(tmp_path / "run", tiny_model, held_out=("dark",))
    first, last = lines_of(tmp_path / "run/held_out.jsonl")
    assert first.keys() == last.keys()
    assert first.keys() == {"step", "optimized", "optimized_std", "reward/dark", "reward_std/dark", "entropy"}


def test_accuracy_of_classes_that_the_judge_knows(tmp_path: Path):
    model = save_judged(tmp_path / "model", tuple(load_classifier().class_names[:5]))
    run(tmp_path / "run", model, held_out=("dark",), eval_images=4, steps=1)
    rows = lines_of(tmp_path / "run/held_out.jsonl")
    assert all(0 <= row["class_accuracy"] <= 1 for row in rows)
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    for moment in ("before", "after"):
        assert 0 <= results[moment]["class_accuracy_top1"] <= results[moment]["class_accuracy_top5"] <= 1


def test_a_run_stops_when_it_hacks(judged_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.training.hooks.held_out.RISE", -100.0)
    monkeypatch.setattr("sfumato.training.hooks.held_out.FALL", -100.0)
    settings = {"steps": 5, "held_out": ("dark", "darkness"), "reward": {"colorfulness": 1.0}}
    lines, text = run(tmp_path / "warned", judged_model, **settings)
    assert len(lines) == 5
    assert "Step 2: signs of reward hacking" in text
    assert "darkness fell from" in text
    lines, text = run(tmp_path / "stopped", judged_model, stop_when_hacking=True, **settings)
    assert len(lines) == 2
    assert "Stopped after step 2" in text
    assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["step-000002"]


def test_measurements_of_version_0_1_are_gone_on_with(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One name was spelled differently; later measurements are compared with the old ones."""
    run(tmp_path / "run", tiny_model, held_out=("dark",), steps=2, save_every=2)
    path = tmp_path / "run/held_out.jsonl"
    before = lines_of(path)
    path.write_text(path.read_text().replace("optimized", "optimised"))
    monkeypatch.setattr("sfumato.training.hooks.held_out.RISE", -100.0)
    monkeypatch.setattr("sfumato.training.hooks.held_out.SHARE", -100.0)
    console = Console(file=(tmp_path / "log.txt").open("w"), width=200)
    config = tiny_config(tiny_model, held_out_every=2, held_out=("dark",), steps=3, save_every=2)
    train(config, tmp_path / "run", resume=True, console=console)
    console.file.close()
    rows = lines_of(path)
    assert rows[:2] == before
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert "Step 3: signs of reward hacking" in (tmp_path / "log.txt").read_text()


def test_thresholds_are_measured_once(tiny_model: Path, tmp_path: Path):
    name = "brightness?levels=0.5,1,1.5"
    config = tiny_config(tiny_model, steps=1, reward={name: 1.0})
    train(config, tmp_path / "run", console=Console(quiet=True))
    path = tmp_path / "run/thresholds.json"
    low, high = json.loads(path.read_text())[name]
    assert 0 < low < high < 1
    path.write_text(json.dumps({name: [0.0, 2.0]}))
    train(replace(config, steps=2), tmp_path / "run", resume=True, console=Console(quiet=True))
    metrics = lines_of(tmp_path / "run/metrics.jsonl")
    assert 0.5 < metrics[0]["reward_mean"] < 1.5
    assert metrics[0]["reward_std"] > 0
    assert (metrics[1]["reward_mean"], metrics[1]["reward_std"]) == (1, 0)
