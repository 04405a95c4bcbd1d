"""Held-out rewards, thresholds that are measured, and scoring beside sampling, in runs of the tiny generator."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny import algorithm_of, tiny_conditions, tiny_config

from sfumato.engine.timing import PhaseTimer
from sfumato.training.held_out import diversity, hacking_signs
from sfumato.training.train import train

FIRST = {
    "step": 0, "optimised": 1.0, "optimised_std": 0.2, "reward/a": 3.0, "reward_std/a": 0.4, "class_accuracy": 0.5,
    "diversity": 2.0, "entropy": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "signs"),
    [
        ({"optimised": 1.11}, []),
        ({"optimised": 1.09, "reward/a": 0.0}, []),
        ({"optimised": 1.11, "reward/a": 2.91}, []),
        ({"optimised": 1.11, "reward/a": 2.89}, ["a fell from 3.000 to 2.890"]),
        ({"optimised": 1.11, "class_accuracy": 0.44}, ["class_accuracy fell from 0.500 to 0.440"]),
        ({"optimised": 2.0, "diversity": 1.0, "entropy": 0.8}, ["diversity fell from", "entropy fell from"]),
        ({"optimised": 2.0, "reward/a": 9.0, "entropy": 0.95}, []),
    ],
)
def test_signs_of_hacking(now: dict[str, float], signs: list[str]):
    found = hacking_signs(FIRST, {**FIRST, **now})
    assert len(found) == len(signs)
    assert all(text.startswith(sign) for text, sign in zip(found, signs, strict=True))


def test_diversity_by_hand():
    # Within the first condition the distances are 5, 10 and 5; in the second all images are the same.
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [7.0, 7.0], [7.0, 7.0], [7.0, 7.0]])
    assert diversity(features, 3) == pytest.approx((20 / 3 + 0) / 2, abs=1e-3)


def run(folder: Path, model: Path, **changes) -> tuple[list[dict], str]:
    """The metrics of a run, and what it printed."""
    console = Console(file=(folder.parent / f"{folder.name}.txt").open("w+"), width=200)
    train(tiny_config(model, held_out_every=2, **changes), folder, console=console)
    console.file.flush()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    text = (folder.parent / f"{folder.name}.txt").read_text()
    console.file.close()
    return lines, text


def test_held_out_rewards_are_logged_and_not_optimised(tiny_model: Path, tmp_path: Path):
    plain, _ = run(tmp_path / "plain", tiny_model, steps=3)
    watched, _ = run(tmp_path / "watched", tiny_model, steps=3, held_out=("colorfulness", "dark"))
    assert [line["reward_mean"] for line in plain] == [line["reward_mean"] for line in watched]
    assert [("held_out/diversity" in line) for line in watched] == [False, True, True]
    assert watched[1].keys() >= {
        f"held_out/{n}" for n in ("reward/colorfulness", "reward/dark", "entropy", "optimised")
    }
    rows = [json.loads(line) for line in (tmp_path / "watched/held_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert rows[0]["diversity"] > 0
    with Image.open(tmp_path / "watched/held_out.png") as picture:
        assert picture.width > 1000
    assert not (tmp_path / "plain/held_out.png").exists()
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_run_stops_when_it_hacks(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.training.held_out.RISE", -100.0)
    monkeypatch.setattr("sfumato.training.held_out.FALL", -100.0)
    settings = {"steps": 5, "held_out": ("dark", "darkness"), "reward": {"colorfulness": 1.0}}
    lines, text = run(tmp_path / "warned", tiny_model, **settings)
    assert len(lines) == 5
    assert "Step 2: signs of reward hacking: the reward rose, but" in text
    lines, _ = run(tmp_path / "stopped", tiny_model, stop_when_hacking=True, **settings)
    assert len(lines) == 2


def test_thresholds_are_measured_once(tiny_model: Path, tmp_path: Path):
    name = "brightness?levels=0.5,1,1.5"
    config = tiny_config(tiny_model, steps=1, reward={name: 1.0})
    train(config, tmp_path / "run", console=Console(quiet=True))
    path = tmp_path / "run/thresholds.json"
    low, high = json.loads(path.read_text())[name]
    assert 0 < low < high < 1
    path.write_text(json.dumps({name: [0.0, 2.0]}))
    train(replace(config, steps=2), tmp_path / "run", resume=True, console=Console(quiet=True))
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 0.5 < metrics[0]["reward_mean"] < 1.5
    assert metrics[0]["reward_std"] > 0
    assert (metrics[1]["reward_mean"], metrics[1]["reward_std"]) == (1, 0)


def test_scoring_beside_sampling_changes_nothing(tiny_model: Path):
    found = []
    for overlap in (False, True):
        reward = {"brightness": 1.0, "colorfulness": 2.0}
        algorithm = algorithm_of(tiny_config(tiny_model, overlap_rewards=overlap, sample_batch_size=2, reward=reward))
        conditions = tiny_conditions([0, 3]).repeat(4)
        experience, metrics = algorithm.collect(conditions, torch.arange(8), PhaseTimer(torch.device("cpu")))
        found.append((experience.advantages.tolist(), metrics))
    assert found[0] == found[1]
