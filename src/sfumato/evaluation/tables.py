"""Measurements of several targets side by side: JSON, Markdown and LaTeX."""

import json
from collections.abc import Mapping

from sfumato.evaluation.measurement import Interval, Measurement

Results = Mapping[str, Measurement]
"""Measurements by target; the first is what the others are compared with."""


def metrics(results: Results) -> list[str]:
    """Names of all figures, in their order."""
    return list(dict.fromkeys(name for measurement in results.values() for name in measurement))


def to_json(results: Results) -> str:
    """Values, intervals, and differences to the first target."""
    first = next(iter(results.values()))
    table = {}
    for target, measurement in results.items():
        rows = table[target] = {}
        for name, figure in measurement.items():
            rows[name] = {"value": figure.value, "interval": figure.interval(), "parts": len(figure.parts)}
            if measurement is not first and name in first:
                difference, interval = figure.difference(first[name])
                rows[name] |= {"difference": difference, "difference_interval": interval}
    return json.dumps(table, indent=1) + "\n"


def to_markdown(results: Results) -> str:
    """A line a figure, a column a target."""
    rows = [["", *results], ["---", *["---"] * len(results)]]
    rows += [[name, *_cells(results, name)] for name in metrics(results)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def to_latex(results: Results) -> str:
    """The same as a `tabular` with booktabs' rules."""
    rows = [" & ".join(["", *map(_escape, results)]), r"\midrule"]
    rows += [" & ".join(map(_escape, [name, *_cells(results, name)])) for name in metrics(results)]
    body = "\n".join(row if row.startswith("\\m") else rf"{row} \\" for row in rows)
    columns = "l" + "r" * len(results)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _cells(results: Results, name: str) -> list[str]:
    """Value [interval] of each target, and after it the difference to the first."""
    first, cells = next(iter(results.values())), []
    for measurement in results.values():
        if name not in measurement:
            cells.append("")
            continue
        figure = measurement[name]
        cell = with_interval(number(figure.value), figure.interval())
        if measurement is not first and name in first:
            difference, interval = figure.difference(first[name])
            cell += f"; {with_interval(number(difference, sign='+'), interval)}"
        cells.append(cell)
    return cells


def number(value: float, sign: str = "") -> str:
    """With four significant digits or three decimals, whichever is shorter."""
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{sign}.{decimals}f}"


def with_interval(text: str, interval: Interval | None) -> str:
    """`value [low, high]`."""
    return text if interval is None else f"{text} [{number(interval[0])}, {number(interval[1])}]"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
