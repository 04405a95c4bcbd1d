"""Progress of pre-training for people: a progress bar per stage in a terminal, a line every 50 steps elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class PretrainingView:
    """A progress bar per stage in a terminal, a line every 50 steps elsewhere."""

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
        """Show one finished step."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in stats.items())
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=steps, stats="")
        self.progress.update(self.tasks[stage], completed=step, stats=text)
        if not self.console.is_terminal and (step % 50 == 0 or step == steps):
            self.console.print(f"{stage} {step}/{steps}  {text}", highlight=False, soft_wrap=True)
