"""Plots of measurements."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot

from sfumato.evaluation.measurement import Figure, Measurement

COLUMNS = 3
"""Number of panels per row."""


def plot_sweep(swept: Mapping[str, Mapping[float, Measurement]], axis_label: str, path: Path) -> None:
    """Plot every figure against the varied setting as PNG: one panel per figure, one line per target, with 95 %
    intervals.

    Args:
        swept: measurements by target, then by the value of the setting.
        axis_label: name of the setting.
        path: path of the .png file.
    """
    names = list(dict.fromkeys(n for by_value in swept.values() for measured in by_value.values() for n in measured))
    plot, axes = panels(names)
    for name, axis in zip(names, axes, strict=True):
        for target, by_value in swept.items():
            points = {value: measured[name] for value, measured in sorted(by_value.items()) if name in measured}
            draw_line(axis, points, target)
        axis.set_xlabel(axis_label)
    axes[0].legend()
    plot.savefig(path, dpi=110)


def panels(titles: Sequence[str]) -> tuple[Plot, list[Axes]]:
    """Create an empty plot with one panel per title, row by row; four panels form a square."""
    columns = 2 if len(titles) == 4 else min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    plot = Plot(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(plot)
    axes = [plot.add_subplot(rows, columns, place) for place in range(1, len(titles) + 1)]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(_plain(title))
        axis.grid(alpha=0.3)
    return plot, axes


def draw_line(axis: Axes, points: Mapping[float, Figure], label: str, color: str | None = None) -> None:
    """Draw figures against the varied setting, with intervals where available."""
    values = [figure.value for figure in points.values()]
    (line,) = axis.plot(list(points), values, marker="o", label=_plain(label), color=color)
    known = {value: ends for value, figure in points.items() if (ends := figure.interval()) is not None}
    if known:
        low, high = zip(*known.values(), strict=True)
        axis.fill_between(list(known), low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _plain(text: str) -> str:
    """Escape dollars, which begin matplotlib's math mode."""
    return text.replace("$", r"\$")
