"""A budget of processor seconds: where a run ends, what it logs, and how it goes on."""

import itertools
import json
import math
from pathlib import Path

import pytest
from errors import bad_input
from rich.console import Console
from run_folders import lines_of
from tiny import tiny_config

from sfumato.training.train import train

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time that advances by a second whenever it is read."""
    ticks = itertools.count()
    monkeypatch.setattr("time.process_time", lambda: float(next(ticks)))


def test_run_ends_at_its_budget(tiny_model: Path, tmp_path: Path):
    budget = 16.0
    config = tiny_config(tiny_model, steps=50, stop_after_seconds=budget, eval_images=4)
    assert train(config, tmp_path / "run", console=QUIET)
    rows = lines_of(tmp_path / "run/metrics.jsonl")
    each = rows[0]["processor_seconds"]  # as often as a step looks at the clock
    assert [row["processor_seconds"] for row in rows] == [each, 2 * each, 3 * each]
    assert 2 * each < budget <= 3 * each
    phases = [f"processor/{phase}" for phase in ("sample", "decode", "reward", "reference", "update")]
    assert [rows[1][phase] for phase in phases] == [2 * rows[0][phase] for phase in phases]
    assert sum(rows[2][phase] for phase in phases) == 3 * each
    assert (tmp_path / "run/checkpoints/step-000003").is_dir()
    assert json.loads((tmp_path / "run/evaluation.json").read_text()).keys() == {"before", "after"}
    assert (tmp_path / "run/samples/step-000003.png").is_file()


def test_resumed_run_goes_on_counting(tiny_model: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert train(tiny_config(tiny_model, steps=2, stop_after_seconds=30.0), run, console=QUIET)
    longer = tiny_config(tiny_model, steps=50, stop_after_seconds=30.0)
    assert train(longer, run, resume=True, console=QUIET)
    rows = lines_of(run / "metrics.jsonl")
    each = rows[0]["processor_seconds"]
    assert [row["processor_seconds"] for row in rows] == [each * n for n in range(1, math.ceil(30 / each) + 1)]
    assert train(longer, run, resume=True, console=QUIET)  # nothing is left to do
    assert lines_of(run / "metrics.jsonl") == rows


def test_no_budget(tiny_model: Path, tmp_path: Path):
    assert train(tiny_config(tiny_model, steps=1), tmp_path / "run", console=QUIET)
    assert not [name for name in lines_of(tmp_path / "run/metrics.jsonl")[0] if name.startswith("processor")]
    with bad_input("stop_after_seconds", "0.0", "above 0"):
        tiny_config(tiny_model, stop_after_seconds=0.0).validate()
