"""Intervals and tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sfumato.evaluation.measurement import Figure, bootstrap, read_measurement, write_measurement
from sfumato.evaluation.tables import to_json, to_latex, to_markdown

PARTS = np.random.default_rng(0).normal(1, 2, size=400)


def test_bootstrap_is_the_normal_interval():
    low, high = bootstrap(PARTS) or (0, 0)
    error = 1.96 * PARTS.std() / 20
    # A bootstrap of 1000 samples determines the ends of the interval to about 5 % of its half-width.
    assert low == pytest.approx(PARTS.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(PARTS.mean() + error, abs=0.1 * error)
    assert bootstrap(PARTS) == (low, high)
    assert bootstrap(PARTS[:1]) is None
    assert bootstrap([1.0, math.nan]) is None


def test_bootstrap_of_independent_parts():
    other = PARTS[:100] + 3
    low, high = bootstrap(PARTS, other) or (0, 0)
    error = 1.96 * (PARTS.var() / 400 + other.var() / 100) ** 0.5
    middle = PARTS.mean() - other.mean()
    assert low == pytest.approx(middle - error, abs=0.15 * error)
    assert high == pytest.approx(middle + error, abs=0.15 * error)


def test_pairs_are_kept():
    first, second = Figure.mean(PARTS.tolist()), Figure.mean((PARTS + 0.5).tolist())
    difference, interval = second.difference(first)
    assert difference == pytest.approx(0.5)
    assert interval == pytest.approx((0.5, 0.5))
    unlike, wide = Figure.mean((PARTS[:300] + 0.5).tolist()).difference(first)
    assert wide is not None
    assert wide[0] < unlike < wide[1]


def test_pairs_without_a_score_count_on_neither_side():
    first, second = Figure.mean([0.0, 1.0, math.nan, 0.2]), Figure.mean([0.1, math.nan, 5.0, 0.3])
    difference, interval = second.difference(first)
    assert difference == pytest.approx(0.1)
    assert interval == pytest.approx((0.1, 0.1))


def test_no_score_is_left_out(tmp_path: Path):
    figure = Figure.mean([1.0, math.nan, 3.0])
    assert figure.value == 2
    assert math.isnan(Figure.mean([math.nan]).value)
    write_measurement(tmp_path / "m.json", {"a": figure, "b": Figure(4.0)})
    assert json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    read = read_measurement(tmp_path / "m.json")
    assert math.isnan(read["a"].parts[1])
    assert read["b"] == Figure(4.0)
    assert read["a"].value == 2
    assert read["a"].interval() == figure.interval()


def test_tables():
    results = {
        "one": {"FID": Figure(12.345), "a|b": Figure(1.0, (0.0, 2.0))},
        "two": {"FID": Figure(10.0), "a|b": Figure(2.0, (1.0, 3.0)), "new_%": Figure(123.45)},
    }
    table = json.loads(to_json(results))
    assert table["two"]["FID"]["difference"] == pytest.approx(-2.345)
    assert table["two"]["a|b"]["difference_interval"] == [1, 1]
    assert "difference" not in table["two"]["new_%"]
    assert "difference" not in table["one"]["FID"]
    assert to_markdown(results).splitlines() == [
        "|  | one | two | difference |",
        "| --- | --- | --- | --- |",
        "| FID | 12.35 | 10.00 | -2.345 |",
        "| a\\|b | 1.000 [0.000, 2.000] | 2.000 [1.000, 3.000] | +1.000 [1.000, 1.000] |",
        "| new_% |  | 123.5 |  |",
    ]
    lines = to_latex(results).splitlines()
    assert lines[0] == "\\begin{tabular}{lrrr}"
    assert lines[4] == "FID & 12.35 & 10.00 & $-$2.345 \\\\"
    assert lines[6] == "new\\_\\% &  & 123.5 &  \\\\"
    assert lines[-1] == "\\end{tabular}"
