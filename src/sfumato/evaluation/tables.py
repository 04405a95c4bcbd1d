"""Tables that compare the measurements of several targets: JSON, Markdown and LaTeX."""

import json
from collections.abc import Mapping

from sfumato.evaluation.measurement import Interval, Measurement
from sfumato.files import finite

Results = Mapping[str, Measurement]
"""Measurements by target; the others are compared with the first."""


def metrics(results: Results) -> list[str]:
    """Return the names of all figures, in their order."""
    return list(dict.fromkeys(name for measurement in results.values() for name in measurement))


def to_json(results: Results) -> str:
    """Return values, intervals, differences to the first target, and what each value was computed from, as JSON."""
    first = next(iter(results.values()))
    table = {}
    for target, measurement in results.items():
        rows = table[target] = {}
        for name, figure in measurement.items():
            rows[name] = {"value": figure.value, "interval": figure.interval(), "parts": len(figure.parts)}
            if figure.basis:
                rows[name]["basis"] = figure.basis
            if measurement is not first and name in first:
                difference, interval = figure.difference(first[name])
                rows[name] |= {"difference": difference, "difference_interval": interval}
    return json.dumps(finite(table), indent=1, allow_nan=False) + "\n"


def to_markdown(results: Results) -> str:
    """Return a Markdown table with one row per figure and one column per target; every target after the first has a
    second column with its difference to the first."""
    header, *rows = _table(results)
    rows = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def to_latex(results: Results) -> str:
    """Return the same table as a `tabular` with the rules of booktabs."""
    header, *rows = _table(results)
    lines = [" & ".join(map(_escape, header)), *(" & ".join([_escape(r[0]), *map(_signed, r[1:])]) for r in rows)]
    lines = [rf"{line} \\" for line in lines]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _table(results: Results) -> list[list[str]]:
    """Return the header and one row per figure as text: value [interval], and difference [interval] to the first
    target."""
    first, *others = results
    header = ["", first]
    for other in others:
        header += [other, "difference"]
    return [header, *([name, *_cells(results, name)] for name in metrics(results))]


def _cells(results: Results, name: str) -> list[str]:
    """Return the cells of a figure; they are empty for targets without it."""
    first, *others = (measurement.get(name) for measurement in results.values())
    cells = ["" if first is None else with_interval(number(first.value), first.interval())]
    for figure in others:
        cells.append("" if figure is None else with_interval(number(figure.value), figure.interval()))
        if figure is None or first is None:
            cells.append("")
        else:
            difference, interval = figure.difference(first)
            cells.append(with_interval(number(difference, sign="+"), interval))
    return cells


def number(value: float, sign: str = "") -> str:
    """Format a number with four significant digits or three decimals, whichever is shorter."""
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{sign}.{decimals}f}"


def with_interval(text: str, interval: Interval | None) -> str:
    """Format `value [low, high]`."""
    return text if interval is None else f"{text} [{number(interval[0])}, {number(interval[1])}]"


def _signed(text: str) -> str:
    """Escape text for LaTeX, with minus signs in place of hyphens."""
    return _escape(text).replace("-", "$-$")


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
