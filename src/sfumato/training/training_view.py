"""Progress of training for people: a live panel in a terminal, plain lines elsewhere, also in notebooks."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

WIDTH = 80
"""Largest number of characters of a line in a terminal."""
MOST_DECIMALS = 9
"""Largest number of decimals; what is smaller reads as 0."""
ROUNDING = 1e-6
"""Share of the mean below which a standard deviation is rounding of float32 numbers."""


class TrainingView:
    """Progress of training for people: a live panel in a terminal, plain lines elsewhere, also in notebooks."""

    def __init__(self, console: Console, title: str, steps: int, first_step: int):
        self.console, self.title, self.steps = console, title, steps
        self.first_step, self.began = first_step, time.monotonic()
        self.live: Live | None = None
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task(title, total=steps, completed=first_step)

    @contextmanager
    def open(self) -> Iterator["TrainingView"]:
        """Show the view until the block ends."""
        # In a notebook, rich's live displays need ipywidgets.
        if self.console.is_terminal and not self.console.is_jupyter:
            with Live(self.progress, console=self.console, refresh_per_second=4) as self.live:
                yield self
        else:
            yield self

    def show(self, metrics: dict[str, float]) -> None:
        """Show one finished step."""
        step = int(metrics["step"])
        self.progress.update(self.task, completed=step)
        if self.live is not None:
            self.live.update(Group(self.progress, _metrics_lines(metrics)))
            return
        left = (time.monotonic() - self.began) / (step - self.first_step) * (self.steps - step)
        figures = [f"step {step}/{self.steps}", *_figures(metrics), f"{_duration(left)} left"]
        # One line per step, however long: logs are searched line by line.
        self.console.print("  ".join([*figures, *_parts(metrics)]), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line of text above the view."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def only_for_looking(self, what: str) -> Iterator[None]:
        """Write something that is only there to be looked at: if it fails, whatever the reason, a line is printed."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.note(f"{what} could not be written ({type(error).__name__}: {reason}); the run goes on")


def _figures(metrics: dict[str, float]) -> list[str]:
    """Format the main metrics; metrics that an objective does not log are left out."""
    formats = {"kl": "kl {:.4f}", "entropy": "entropy {:.3f}", "clip_fraction": "clip {:.3f}"}
    known = [form.format(metrics[name]) for name, form in formats.items() if name in metrics]
    mean, spread = metrics["reward_mean"], metrics["reward_std"]
    digits = decimals(mean, spread)
    reward = f"reward {mean:.{digits}f} ± {spread:.{digits}f}"
    return [reward, *known, f"{metrics['images_per_second']:.1f} images/s"]


def _parts(metrics: dict[str, float]) -> list[str]:
    """Format the mean of each part of a reward that has several; nothing for a single one."""
    means = {name.removeprefix("reward/"): mean for name, mean in metrics.items() if name.startswith("reward/")}
    spreads = {name: metrics.get(f"reward_std/{name}", 0.0) for name in means}
    parts = [f"{name} {mean:.{decimals(mean, spreads[name])}f}" for name, mean in means.items()]
    return parts if len(parts) > 1 else []


def decimals(mean: float, spread: float) -> int:
    """Return how many decimals a mean needs to show three digits of it and two of its standard deviation, so that a
    reward that moves in the third decimal is seen to move."""
    size = max(abs(mean), spread)
    if not 0 < size < math.inf:
        return 3
    needed = [0, 2 - math.floor(math.log10(size))]
    if spread > ROUNDING * size:
        needed.append(1 - math.floor(math.log10(spread)))
    return min(max(needed), MOST_DECIMALS)


def _lines(figures: Sequence[str], gap: str, width: int = WIDTH) -> list[str]:
    """Join figures to lines of at most `width` characters, none of which ends within a figure if they are shorter."""
    lines: list[str] = []
    for figure in figures:
        if lines and len(lines[-1]) + len(gap) + len(figure) <= width:
            lines[-1] += gap + figure
        else:
            lines.append(figure)
    return lines


def _metrics_lines(metrics: dict[str, float]) -> Text:
    """Format the metrics of a step; each kind begins a line."""
    phases = {name.split("/")[1]: value for name, value in metrics.items() if name.startswith("seconds/")}
    kinds = [_figures(metrics), _parts(metrics), [f"{name} {seconds:.2f} s" for name, seconds in phases.items()]]
    return Text("\n".join(line for kind in kinds for line in _lines(kind, "   ")))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
