"""Metrics files, and the output in a terminal."""

import io
import json
import math
import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import tiny_config, tiny_request, trainer_of

from sfumato.engine.process import Process
from sfumato.files import read_metrics
from sfumato.trackers import Trackers
from sfumato.training.hooks.hook import Progress
from sfumato.training.hooks.metrics import Metrics, MetricsFile
from sfumato.training.training_view import TrainingView, _duration

METRICS = {
    "step": 3, "reward_mean": 0.25, "reward_std": 0.125, "reward/dark": 0.5, "reward/bright": 0.75, "kl": 0.01,
    "entropy": 2.5, "clip_fraction": 0.1, "images_per_second": 12.34, "seconds/sample": 1.5,
}  # fmt: skip


def test_metrics_are_read_as_written(tmp_path: Path):
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2):
        file.write({"step": step, "kl": 0.1 * step, "reward_mean": float("nan")})
    assert [line["kl"] for line in read_metrics(tmp_path)] == [0.1, 0.2]


def test_steps_after_the_checkpoint_are_forgotten(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "k')
    MetricsFile(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    MetricsFile(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert read_metrics(tmp_path / "nowhere") == []


def test_only_the_main_process_has_a_file(tiny_model: Path, tmp_path: Path):
    batch, _ = trainer_of(tiny_config(tiny_model)).collect(tiny_request([0] * 8))
    for rank in (1, 0):
        console = Console(file=io.StringIO(), width=120)
        view = TrainingView(console, "run", steps=5, first_step=2)
        process = Process(rank=rank, count=2, device=torch.device("cpu"))
        with Metrics.opened(view, tmp_path, 2, process, partial(Trackers, {})) as metrics:
            metrics(Progress(step=2, steps=5))  # training has not started yet
            metrics(Progress(step=3, steps=5, batch=batch, metrics=dict(METRICS)))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines() if rank == 0 else []
        assert list(map(json.loads, lines)) == ([METRICS] if rank == 0 else [])
        assert ("step 3/5" in console.file.getvalue()) == (rank == 0)  # pyright: ignore[reportAttributeAccessIssue]
        assert any(tmp_path.iterdir()) == (rank == 0)


def shown(terminal: bool, metrics: dict[str, float]) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    view = TrainingView(console, "my run", steps=5, first_step=2)
    with view.open():
        view.show(metrics)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_terminal_shows_a_panel():
    text = shown(True, METRICS)
    for part in ("my run", "3/5", "0.250", "0.0100", "12.3 images/s", "dark 0.500", "bright 0.750", "sample 1.50 s"):
        assert part in text


def test_a_notebook_gets_lines():
    view = TrainingView(Console(force_jupyter=True), "my run", steps=5, first_step=2)
    with view.open():
        assert view.live is None


@pytest.mark.parametrize("terminal", [False, True])
def test_figures_that_an_objective_does_not_log_are_left_out(terminal: bool):
    known = shown(terminal, METRICS)
    assert all(word in known for word in ("kl 0.0100", "entropy 2.500", "clip 0.100"))
    text = shown(terminal, {name: value for name, value in METRICS.items() if name not in ("kl", "clip_fraction")})
    assert "entropy 2.500" in text
    assert "kl" not in text
    assert "clip" not in text


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        (0.25, 0.125, "reward 0.250 ± 0.125"),
        (0.0312, 0.00123, "reward 0.0312 ± 0.0012"),
        (0.98765, 0.000123, "reward 0.98765 ± 0.00012"),
        (1234.5, 200.0, "reward 1234 ± 200"),
        (-26.53, 4.2, "reward -26.5 ± 4.2"),
        (0.5, 1e-9, "reward 0.500 ± 0.000"),
        (0.0, 0.0, "reward 0.000 ± 0.000"),
        (1e-12, 0.2, "reward 0.000 ± 0.200"),
        (math.nan, 0.0, "reward nan ± 0.000"),
    ],
)
def test_rewards_have_the_digits_that_change(mean: float, spread: float, text: str):
    assert f"{text}  " in shown(False, {**METRICS, "reward_mean": mean, "reward_std": spread})


@pytest.mark.parametrize("terminal", [False, True])
def test_many_parts_stay_within_80_columns(terminal: bool):
    parts = {f"reward/the part number {n}": n / 1000 for n in range(1, 9)}
    parts |= {f"reward_std/the part number {n}": 0.0001 for n in range(1, 9)}
    text = shown(terminal, {**METRICS, **parts, "images_per_second": 1234.5})
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    assert max(len(line) for line in lines if "━" not in line) <= 80 or not terminal
    assert terminal or len(lines) == 1
    found = re.findall(r"the part number (\d) (0\.\d+)", text)
    assert [value for _, value in found[:8]] == [f"{n / 1000:.5f}" for n in range(1, 9)]


def test_time_left(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120)
    view = TrainingView(console, "my run", steps=5, first_step=2)
    now[0] = 190.0
    view.show(METRICS)  # one step of 90 s, and two are left
    assert "3:00 left" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600 * 27 + 61, "27:01:01")]
)
def test_duration(seconds: float, text: str):
    assert _duration(seconds) == text
