"""Comparing runs on the terminal and as CSV."""

import csv
import io
import json
from pathlib import Path

import pytest
from errors import bad_input
from made_runs import metrics, write_pretraining, write_rows, write_run
from rich.console import Console

from sfumato.cli.compare import Compare, show
from sfumato.cli.main import main
from sfumato.report.comparison import Comparison, compare

HELD_OUT = [
    {
        "step": step,
        "optimized": step / 10,
        "optimized_std": 0.1,
        "reward/clip": 0.3 - step / 1e4,
        "reward_std/clip": 1.0,
    }
    for step in (0, 5, 10)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 20 steps with held-out rewards, and an unfinished one of 8 steps without."""
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "first", steps=20, every=10)
    rows = [{**metrics(step), "seconds/sample": 1.0, "seconds/update": 0.1 * step} for step in range(1, 21)]
    write_rows(first / "metrics.jsonl", rows)
    write_rows(first / "held_out.jsonl", HELD_OUT)
    second = write_run(folder / "second", steps=8, every=8, objective={"name": "grpo", "clip": 0.1, "kl_weight": 0.1})
    evaluation = json.loads((second / "evaluation.json").read_text())
    (second / "evaluation.json").write_text(json.dumps({"before": evaluation["before"]}))
    return first, second


@pytest.fixture(scope="module")
def comparison(runs: tuple[Path, Path]) -> Comparison:
    return compare(runs)


def test_settings_that_differ(comparison: Comparison):
    assert comparison.names == ["first", "second"]
    assert comparison.settings == [("steps", ["20", "8"]), ("objective.clip", ["0.2", "0.1"])]


def test_results(comparison: Comparison):
    results = {result.name: result for result in comparison.results}
    texts = {name: result.texts() for name, result in results.items()}
    assert texts == {
        "steps done": ["20", "8"],
        # Two steps, a quarter of the shorter run: the rewards are step / 7.
        "reward, first 2 steps": ["0.214 ± 0.071", "0.214 ± 0.071"],
        "reward, last 2 steps": ["2.786 ± 0.071", "1.071 ± 0.071"],
        "KL, last 2 steps": ["0.01950 ± 0.00050", "0.00750 ± 0.00050"],
        "fresh images: reward": ["0.250 → 0.750", "0.250"],
        "held out: optimized reward": ["0.00 → 1.00", "–"],
        "held out: clip": ["0.3000 → 0.2990", "–"],
        "seconds per step": ["2.05", "–"],
    }
    assert results["reward, last 2 steps"].values[0] == pytest.approx((19.5 / 7, 0.5 / 7))


def test_lines_without_a_terminal(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{'':26}  first              second", f"{'steps':26}  20                 8"]
    assert "reward, last 2 steps        2.786 ± 0.071      1.071 ± 0.071" in lines
    assert len(lines) == 1 + 2 + 1 + 8


def test_a_table_in_a_terminal(comparison: Comparison):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    show(comparison, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, text.splitlines())) <= 80
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert ["objective.clip", "0.2", "0.1"] in cells
    assert ["held out: clip", "0.3000 → 0.2990", "–"] in cells


def test_csv(runs: tuple[Path, Path], tmp_path: Path):
    out = tmp_path / "new/runs.csv"
    assert main(["compare", *map(str, runs), "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = {(row["kind"], row["name"], row["number"]): (row["first"], row["second"]) for row in rows}
    assert lines["setting", "objective.clip", ""] == ("0.2", "0.1")
    assert lines["result", "steps done", ""] == ("20", "8")
    assert lines["result", "held out: clip", "after"] == (str(0.3 - 10 / 1e4), "")
    assert lines["result", "fresh images: reward", "after"] == ("0.75", "")
    assert float(lines["result", "reward, last 2 steps", "standard error"][0]) == pytest.approx(0.5 / 7)
    with bad_input("csv", str(out), "exists"):
        Compare(runs=runs, csv=out)()


def test_equal_settings_and_a_run_without_steps(tmp_path: Path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    for name in ("metrics.jsonl", "evaluation.json"):
        (other / name).unlink()
    comparison = compare([one, other])
    assert comparison.settings == []
    assert comparison.results[0].texts() == ["4", "0"]
    assert all(result.texts()[1] == "–" for result in comparison.results[1:])


def test_what_cannot_be_compared(runs: tuple[Path, Path], tmp_path: Path):
    first, second = runs
    with bad_input("run", "0 given", "at least two"):
        compare([])
    with bad_input("run", "1 given", "at least two"):
        compare([first])
    with bad_input("run", str(first), "twice"):
        compare([first, second, second.parent / "first"])
    with bad_input("run", "nowhere", "missing"):
        compare([first, tmp_path / "nowhere"])
    with bad_input("run", str(tmp_path), "`sfumato train`"):
        compare([first, tmp_path])
    with bad_input("run", "own", "`sfumato train`"):
        compare([first, write_pretraining(tmp_path / "own")])
    (tmp_path / "file").write_text("mine")
    with bad_input("csv", "file", "not a folder"):
        Compare(runs=runs, csv=tmp_path / "file/runs.csv")()
