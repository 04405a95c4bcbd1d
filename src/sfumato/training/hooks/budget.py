"""A budget of processor time: runs of different methods that are stopped alike cost the same."""

from pathlib import Path

from sfumato.engine.process import Process
from sfumato.files import read_metrics
from sfumato.training.hooks.hook import Progress

PREFIX = "processor/"
"""Beginning of the names of the metrics."""
TOTAL = "processor_seconds"
"""Name of their sum."""


class Budget:
    """Hook that ends a run at the first step at which its phases have used this many processor seconds since the run
    began. It logs the seconds so far, `processor/PHASE` and their sum `processor_seconds`.

    The processor time of other programs does not count, nor does anything between the phases: checkpoints, pictures,
    measurements. On a GPU, the seconds are those of the phases.
    """

    def __init__(self, run_dir: Path, process: Process, seconds: float):
        self.run_dir, self.process, self.seconds = run_dir, process, seconds
        self.spent: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.is_resumed:
            rows = read_metrics(self.run_dir)
            last = rows[-1] if rows else {}
            self.spent = {n.removeprefix(PREFIX): value for n, value in last.items() if n.startswith(PREFIX)}
        for phase, seconds in progress.processor.items():
            self.spent[phase] = self.spent.get(phase, 0.0) + seconds
        total = sum(self.spent.values())
        if progress.batch is not None:
            progress.metrics |= {f"{PREFIX}{phase}": seconds for phase, seconds in self.spent.items()}
            progress.metrics[TOTAL] = total
        if self.process.any(total >= self.seconds):
            progress.steps = progress.step
