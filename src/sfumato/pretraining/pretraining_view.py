"""Progress of pre-training for people: a progress bar per stage in a terminal, a line every 50 steps elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

FORMATS = {
    "loss": "loss {:.4g}",
    "val_loss": "validation {:.4g}",
    "psnr": "PSNR {:.1f} dB",
    "val_psnr": "validation {:.1f} dB",
    "accuracy": "accuracy {:.0%}",
    "val_accuracy": "validation {:.0%}",
    "codes_used": "codes used {:.0%}",
    "bit_balance": "bits balanced {:.0%}",
}
"""The figures to show, in this order; the others are only in `metrics.jsonl`."""
LOW_USE = 0.25
"""Share of codes used below which the codebook has collapsed, or is too large for the images."""


class PretrainingView:
    """A progress bar per stage in a terminal, and the latest figures below it; a line every 50 steps elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        # Without the figures, a bar fits into 80 columns with the step and the time left.
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"),
            console=console,
        )  # fmt: skip
        self.live: Live | None = None
        self.tasks: dict[str, TaskID] = {}
        self.latest: dict[str, float] = {}

    @contextmanager
    def open(self) -> Iterator["PretrainingView"]:
        """Show the view until the block ends."""
        if self.console.is_terminal:
            with Live(self.progress, console=self.console, refresh_per_second=4) as self.live:
                yield self
        else:
            yield self

    def show(self, stage: str, step: int, steps: int, stats: Mapping[str, float]) -> None:
        """Show one finished step; figures that are not measured at every step stay."""
        new = stage not in self.tasks
        if new:
            self.tasks[stage] = self.progress.add_task(stage, total=steps, completed=step - 1)
            self.first, self.began, self.latest = step, time.monotonic(), {}
        self.progress.update(self.tasks[stage], completed=step)
        self.latest.update(stats)
        if self.live is not None:
            self.live.update(Group(self.progress, Text(figures(self.latest))))
        elif new or step % 50 == 0 or step == steps:
            line = f"{stage} {step}/{steps}  {figures(self.latest)}{self._left(step, steps)}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def _left(self, step: int, steps: int) -> str:
        """Return the time that the stage still takes, as soon as it is known; the first step is slower than others."""
        if step == self.first:
            return ""
        seconds = round((time.monotonic() - self.began) / (step - self.first) * (steps - step))
        return f"  {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def figures(stats: Mapping[str, float]) -> str:
    """Return the main statistics of a step in words."""
    words = [form.format(stats[name]).replace("%", " %") for name, form in FORMATS.items() if name in stats]
    low = " (low)" if stats.get("codes_used", 1.0) < LOW_USE else ""
    return "  ".join(words) + low
