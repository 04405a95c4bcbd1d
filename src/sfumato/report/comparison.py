"""Compare training runs in one table: the settings that differ, and the results."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal

from sfumato.errors import UserError
from sfumato.evaluation.runner import flat, label
from sfumato.files import write_text
from sfumato.report.folders import Row, check_distinct, differences, read_config, read_optional, read_rows
from sfumato.training.training_view import decimals

MOST_STEPS = 10
"""Largest number of steps over which the reward is averaged at each end of a run."""
Kind = Literal["count", "number", "mean", "change"]
"""A whole number; a number; a mean and its standard error; or a value before and after training."""
PARTS: dict[Kind, tuple[str, ...]] = {
    "count": ("",),
    "number": ("",),
    "mean": ("mean", "standard error"),
    "change": ("before", "after"),
}
"""What the numbers of a result are."""
MISSING = "–"


@dataclass(frozen=True)
class Result:
    """A line of the results: numbers of every run."""

    name: str
    kind: Kind
    values: Sequence[tuple[float, ...]]
    """the numbers of each run, named in `PARTS`; empty for a run without this result"""

    def texts(self) -> list[str]:
        """Return the numbers of each run as text, with the digits in which the runs differ."""
        values = [value for numbers in self.values for value in (numbers[:1] if self.kind == "mean" else numbers)]
        size, spread = max(map(abs, values), default=0.0), max(values, default=0.0) - min(values, default=0.0)
        error = max((numbers[1] for numbers in self.values if len(numbers) > 1), default=0.0)
        digits = max(decimals(size, spread), decimals(size, error) if self.kind == "mean" else 0)
        if self.kind == "count":
            digits = 0
        joint = " ± " if self.kind == "mean" else " → "
        return [joint.join(f"{value:.{digits}f}" for value in values) or MISSING for values in self.values]


@dataclass(frozen=True)
class Comparison:
    """Several training runs side by side."""

    names: Sequence[str]
    """short names of the runs"""
    settings: Sequence[tuple[str, list[str]]]
    """settings that differ, with dotted names, and the value in each run"""
    results: Sequence[Result]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the folders of two or more training runs, which may be unfinished.

    Raises:
        UserError: there are fewer than two, one is given twice, or one was not written by `sfumato train`.
    """
    for folder in folders:
        if not (folder / "config.json").is_file():
            state = "was not written by `sfumato train`" if folder.exists() else "is missing"
            raise UserError(f"run: {folder} {state}; give run folders, such as runs/emoji-dark")
    check_distinct(folders)
    if len(folders) < 2:
        raise UserError(f"run: {len(folders)} given; give at least two run folders to compare")
    configs = [read_config(folder) for folder in folders]
    differing = [row for row in differences([flat(config) for config in configs]) if row["differs"]]
    return Comparison(
        names=label([str(folder.resolve()) for folder in folders]),
        settings=[(row["name"], [MISSING if v is None else v for v in row["values"]]) for row in differing],
        results=read_results(folders),
    )


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Return the results of runs; a result that no run has is left out."""
    logs = [read_rows(folder / "metrics.jsonl", []) for folder in folders]
    shortest = min((len(rows) for rows in logs if rows), default=0)
    # The same number for all runs, so that the means compare; at least two steps, for a standard error.
    count = min(MOST_STEPS, max(2, shortest // 4), max(1, shortest))
    steps = "step" if count == 1 else f"{count} steps"
    results = [
        Result("steps done", "count", [(rows[-1]["step"] if rows else 0,) for rows in logs]),
        Result(f"reward, first {steps}", "mean", [mean_of(rows[:count], "reward_mean") for rows in logs]),
        Result(f"reward, last {steps}", "mean", [mean_of(rows[-count:], "reward_mean") for rows in logs]),
        Result(f"KL, last {steps}", "mean", [mean_of(rows[-count:], "kl") for rows in logs]),
        *changes("fresh images: ", [evaluation_of(folder) for folder in folders]),
        *changes("held out: ", [held_out_of(folder) for folder in folders]),
        Result("seconds per step", "number", [seconds_of(rows) for rows in logs]),
    ]
    return [result for result in results if any(result.values)]


def mean_of(rows: Sequence[Row], name: str) -> tuple[float, ...]:
    """Return the mean of a metric over these steps and its standard error, which a single step does not have."""
    values = [row[name] for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    if not values:
        return ()
    return (fmean(values), stdev(values) / len(values) ** 0.5) if len(values) > 1 else (fmean(values),)


def seconds_of(rows: Sequence[Row]) -> tuple[float, ...]:
    """Return the median time of a step: the phases that are timed, without pictures and checkpoints."""
    totals = [sum(value for name, value in row.items() if name.startswith("seconds/")) for row in rows]
    return (median(totals),) if any(totals) else ()


def evaluation_of(folder: Path) -> tuple[Row, Row]:
    """Return the measurements on fresh images before and after training."""
    moments = read_optional(folder / "evaluation.json", [])
    return moments.get("before", {}), moments.get("after", {})


def held_out_of(folder: Path) -> tuple[Row, Row]:
    """Return the first and the last measurement of the held-out rewards."""
    rows = [{name: value for name, value in row.items() if name != "step" and "_std" not in name}
            for row in read_rows(folder / "held_out.jsonl", [])]  # fmt: skip
    return (rows[0], rows[-1] if len(rows) > 1 else {}) if rows else ({}, {})


def changes(prefix: str, moments: Sequence[tuple[Row, Row]]) -> list[Result]:
    """Return how each figure changed in each run. An unfinished run has only the value before."""
    names = dict.fromkeys(name for before, _ in moments for name in before if name != "images")
    results: list[Result] = []
    for name in names:
        title = {"reward_mean": "reward", "optimized": "optimized reward"}.get(name, name.removeprefix("reward/"))
        values = [tuple(row[name] for row in pair if isinstance(row.get(name), int | float)) for pair in moments]
        if all(values != result.values for result in results):  # the only part of a reward equals the reward
            results.append(Result(prefix + title, "change", values))
    return results


def to_csv(comparison: Comparison) -> str:
    """Return the comparison as CSV: a line for each setting and each number, a column for each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", "number", *comparison.names])
    for name, values in comparison.settings:
        writer.writerow(["setting", name, "", *values])
    for result in comparison.results:
        for position, part in enumerate(PARTS[result.kind]):
            numbers = [values[position] if position < len(values) else "" for values in result.values]
            writer.writerow(["result", result.name, part, *numbers])
    return text.getvalue()


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the comparison as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_csv(comparison))
