"""Plots of measurements."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot

from sfumato.evaluation.measurement import Figure, Measurement

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
    plot, axes = panels(names)
    for name, axis in zip(names, axes, strict=True):
        for target, by_value in swept.items():
            points = {value: found[name] for value, found in sorted(by_value.items()) if name in found}
            draw_line(axis, points, target)
        axis.set_xlabel(axis_label)
    axes[0].legend()
    plot.savefig(path, dpi=110)


def panels(titles: Sequence[str]) -> tuple[Plot, list[Axes]]:
    """An empty plot with a panel a title, row by row; four make a square."""
    columns = 2 if len(titles) == 4 else min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    plot = Plot(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(plot)
    axes = [plot.add_subplot(rows, columns, place) for place in range(1, len(titles) + 1)]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(_plain(title))
        axis.grid(alpha=0.3)
    return plot, axes


def draw_line(axis: Axes, points: Mapping[float, Figure], label: str, colour: str | None = None) -> None:
    """Figures against what was varied, with their intervals where they have them."""
    values = [figure.value for figure in points.values()]
    (line,) = axis.plot(list(points), values, marker="o", label=_plain(label), color=colour)
    known = {value: ends for value, figure in points.items() if (ends := figure.interval()) is not None}
    if known:
        low, high = zip(*known.values(), strict=True)
        axis.fill_between(list(known), low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _plain(text: str) -> str:
    """Without matplotlib's mathematics, which dollars begin."""
    return text.replace("$", r"\$")
