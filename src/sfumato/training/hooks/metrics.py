"""Metrics of every step: `metrics.jsonl`, trackers, and the terminal view."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.engine.process import Process
from sfumato.files import read_metrics, write_text
from sfumato.trackers import Trackers
from sfumato.training.hooks.hook import Progress
from sfumato.training.training_view import TrainingView

MISMATCH = 0.05
"""Mean difference (nats per token) between sampled and scored log-probabilities above which a run warns."""


class MetricsFile:
    """`metrics.jsonl`, with one object per step."""

    def __init__(self, run_dir: Path, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        # A killed run may have logged steps after its last checkpoint; these steps are repeated.
        kept = [line for line in read_metrics(run_dir) if line["step"] <= first_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, metrics: dict[str, float]) -> None:
        """Append the metrics of one step."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


class Metrics:
    """Hook that writes and shows the metrics of every step."""

    def __init__(self, view: TrainingView, file: MetricsFile | None, trackers: Trackers):
        self.view, self.file, self.trackers, self.warned = view, file, trackers, False

    @staticmethod
    @contextmanager
    def opened(
        view: TrainingView,
        run_dir: Path,
        first_step: int,
        process: Process,
        tracked: Callable[[Callable[[str], object]], Trackers],
    ) -> Iterator["Metrics"]:
        """Provide the hook, with its file, view and trackers open until the block ends; only the main process has them.

        Args:
            view: what people see.
            run_dir: run folder.
            first_step: number of steps done.
            process: this process.
            tracked: starts the trackers, given a function that prints a line.
        """
        if not process.is_main:
            yield Metrics(view, None, Trackers({}, view.note))
            return
        file, trackers = MetricsFile(run_dir, first_step), tracked(view.note)
        try:
            with view.open():
                yield Metrics(view, file, trackers)
        finally:
            trackers.close()

    def __call__(self, progress: Progress) -> None:
        if self.file is not None and progress.batch is not None:
            metrics = {"step": progress.step, **progress.metrics}
            self.file.write(metrics)
            self.trackers.log(metrics)
            self.view.show(metrics)
            mismatch = metrics.get("mismatch/mean", 0.0)
            if mismatch > MISMATCH and not self.warned:
                self.warned = True
                self.view.note(
                    f"Step {progress.step}: sampled and scored log-probabilities differ by {mismatch:.3f} nats per "
                    "token before any update; ratios are that wrong. Use --recompute-log-probs or --precision fp32."
                )
