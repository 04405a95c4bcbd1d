"""Plots of measurements."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot

from sfumato.evaluation.measurement import Measurement

COLUMNS = 3
"""panels a row"""


def plot_sweep(swept: Mapping[str, Mapping[float, Measurement]], axis_label: str, path: Path) -> None:
    """Every figure against what was varied, a panel a figure and a line a target, with 95 % intervals; as PNG.

    Args:
        swept: by target, then by the value that was set.
        axis_label: what was varied.
        path: of the .png file.
    """
    names = list(dict.fromkeys(name for by_value in swept.values() for found in by_value.values() for name in found))
    columns, rows = min(COLUMNS, len(names)), -(-len(names) // COLUMNS)
    plot = Plot(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(plot)
    for place, name in enumerate(names, start=1):
        axis = plot.add_subplot(rows, columns, place)
        for target, by_value in swept.items():
            points = {value: found[name] for value, found in sorted(by_value.items()) if name in found}
            (line,) = axis.plot(
                list(points), [figure.value for figure in points.values()], marker="o", label=_plain(target)
            )
            known = {value: ends for value, figure in points.items() if (ends := figure.interval()) is not None}
            if known:
                low, high = zip(*known.values(), strict=True)
                axis.fill_between(list(known), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(_plain(name))
        axis.set_xlabel(axis_label)
        axis.grid(alpha=0.3)
        if place == 1:
            axis.legend()
    plot.savefig(path, dpi=110)


def _plain(text: str) -> str:
    """Without matplotlib's mathematics, which dollars begin."""
    return text.replace("$", r"\$")
