"""Progress of training for people: a live panel in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class TrainingView:
    """Progress of training for people: a live panel in a terminal, plain lines elsewhere."""

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
        if self.console.is_terminal:
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
        figures = "  ".join([f"step {step}/{self.steps}", *_figures(metrics), f"{_duration(left)} left"])
        self.console.print(figures, highlight=False, soft_wrap=True)

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
    reward = f"reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}"
    return [reward, *known, f"{metrics['images_per_second']:.1f} images/s"]


def _metrics_lines(metrics: dict[str, float]) -> Text:
    """Format the metrics of a step, one line per kind."""
    phases = {name.split("/")[1]: value for name, value in metrics.items() if name.startswith("seconds/")}
    parts = {name: value for name, value in metrics.items() if name.startswith("reward/")}
    lines = [
        _figures(metrics),
        [f"{name} {value:.3f}" for name, value in parts.items()] if len(parts) > 1 else [],
        [f"{name} {seconds:.2f} s" for name, seconds in phases.items()],
    ]
    return Text("\n".join("   ".join(line) for line in lines if line))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
