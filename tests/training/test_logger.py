"""Metrics files and what a terminal shows."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sfumato.training.logger import MetricsFile, TrainingView, _duration, read_metrics

METRICS = {
    "step": 3, "reward_mean": 0.25, "reward_std": 0.125, "reward/dark": 0.5, "reward/bright": 0.75, "kl": 0.01,
    "entropy": 2.5, "clip_fraction": 0.1, "images_per_second": 12.34, "seconds/sample": 1.5,
}  # fmt: skip


def test_metrics_are_read_as_written(tmp_path: Path):
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2):
        file.write({"step": step, "kl": 0.1 * step, "reward_mean": float("nan")})
    file.close()
    assert [line["kl"] for line in read_metrics(tmp_path)] == [0.1, 0.2]
    assert list((tmp_path / "tensorboard").iterdir())


def test_steps_after_the_checkpoint_are_forgotten(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "k')
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    MetricsFile(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert read_metrics(tmp_path / "nowhere") == []


def test_terminal_shows_a_panel():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = TrainingView(console, "my run", steps=5, first_step=2)
    with view.open():
        view.show(METRICS)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for part in ("my run", "3/5", "0.250", "0.0100", "12.3 images/s", "dark 0.500", "bright 0.750", "sample 1.50 s"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600 * 27 + 61, "27:01:01")]
)
def test_duration(seconds: float, text: str):
    assert _duration(seconds) == text
