"""Metrics to files, and a view of the run in the terminal."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tensorboardX import SummaryWriter

from sfumato.files import write_text


class MetricsFile:
    """`metrics.jsonl`, one object a step, and the same as TensorBoard events."""

    def __init__(self, run_dir: Path, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        # A killed run may have logged steps that its last checkpoint does not know; they are drawn again.
        kept = [line for line in read_metrics(run_dir) if line["step"] <= first_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if kept else None)

    def write(self, metrics: dict[str, float]) -> None:
        """Append one step."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            if name != "step" and math.isfinite(value):
                self.events.add_scalar(name, value, int(metrics["step"]))
        self.events.flush()

    def close(self) -> None:
        """Flush the events."""
        self.events.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The steps in a run's `metrics.jsonl`; a last line cut off by a kill is left out."""
    return read_lines(run_dir / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, float]]:
    """The objects in a file of one a line; a last line cut off by a kill is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


class TrainingView:
    """What a person watches: a live panel in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, title: str, steps: int, first_step: int):
        self.console, self.title, self.steps = console, title, steps
        self.first_step, self.began = first_step, time.monotonic()
        self.live: Live | None = None
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
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
        """One finished step."""
        step = int(metrics["step"])
        self.progress.update(self.task, completed=step)
        if self.live is not None:
            self.live.update(Group(self.progress, _metrics_lines(metrics)))
            return
        left = (time.monotonic() - self.began) / (step - self.first_step) * (self.steps - step)
        self.console.print(
            f"step {step}/{self.steps}  reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}  "
            f"kl {metrics['kl']:.4f}  entropy {metrics['entropy']:.3f}  clip {metrics['clip_fraction']:.3f}  "
            f"{metrics['images_per_second']:.1f} images/s  {_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        """A line of text above the view."""
        self.console.print(text, highlight=False, soft_wrap=True)


class PretrainingView:
    """A progress bar a stage in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        columns = ("[bold]{task.description}", "{task.fields[stats]}")
        self.progress = Progress(
            TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(columns[1]),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, TaskID] = {}

    @contextmanager
    def open(self) -> Iterator["PretrainingView"]:
        """Show the view until the block ends."""
        with self.progress:
            yield self

    def show(self, stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        """One finished step."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in stats.items())
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=steps, stats="")
        self.progress.update(self.tasks[stage], completed=step, stats=text)
        if not self.console.is_terminal and (step % 50 == 0 or step == steps):
            self.console.print(f"{stage} {step}/{steps}  {text}", highlight=False, soft_wrap=True)


def _metrics_lines(metrics: dict[str, float]) -> Text:
    """The metrics of a step, a line a kind."""
    phases = {name.split("/")[1]: value for name, value in metrics.items() if name.startswith("seconds/")}
    parts = {name: value for name, value in metrics.items() if name.startswith("reward/")}
    lines = [
        [
            f"reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}",
            f"kl {metrics['kl']:.4f}",
            f"entropy {metrics['entropy']:.3f} nats",
            f"clip fraction {metrics['clip_fraction']:.3f}",
            f"{metrics['images_per_second']:.1f} images/s",
        ],
        [f"{name} {value:.3f}" for name, value in parts.items()] if len(parts) > 1 else [],
        [f"{name} {seconds:.2f} s" for name, seconds in phases.items()],
    ]
    return Text("\n".join("   ".join(line) for line in lines if line))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
