"""Metrics of every step: `metrics.jsonl`, TensorBoard events, and the terminal view."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from sfumato.engine.process import Process
from sfumato.files import read_metrics, write_text
from sfumato.training.hooks.hook import Progress
from sfumato.training.training_view import TrainingView

MISMATCH = 0.05
"""Mean difference (nats per token) between sampled and scored log-probabilities above which a run warns."""


class MetricsFile:
    """`metrics.jsonl`, with one object per step, and the same metrics as TensorBoard events."""

    def __init__(self, run_dir: Path, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        # A killed run may have logged steps after its last checkpoint; these steps are repeated.
        kept = [line for line in read_metrics(run_dir) if line["step"] <= first_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if kept else None)

    def write(self, metrics: dict[str, float]) -> None:
        """Append the metrics of one step."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            if name != "step" and math.isfinite(value):
                self.events.add_scalar(name, value, int(metrics["step"]))
        self.events.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self.events.close()


class Metrics:
    """Hook that writes and shows the metrics of every step."""

    def __init__(self, view: TrainingView, file: MetricsFile | None):
        self.view, self.file, self.warned = view, file, False

    @staticmethod
    @contextmanager
    def opened(view: TrainingView, run_dir: Path, first_step: int, process: Process) -> Iterator["Metrics"]:
        """Provide the hook, with its file and view open until the block ends; only the main process has them."""
        if not process.is_main:
            yield Metrics(view, None)
            return
        file = MetricsFile(run_dir, first_step)
        try:
            with view.open():
                yield Metrics(view, file)
        finally:
            file.close()

    def __call__(self, progress: Progress) -> None:
        if self.file is not None and progress.batch is not None:
            metrics = {"step": progress.step, **progress.metrics}
            self.file.write(metrics)
            self.view.show(metrics)
            mismatch = metrics.get("mismatch/mean", 0.0)
            if mismatch > MISMATCH and not self.warned:
                self.warned = True
                self.view.note(
                    f"Step {progress.step}: sampled and scored log-probabilities differ by {mismatch:.3f} nats per "
                    "token before any update; ratios are that wrong. Use --recompute-log-probs or --precision fp32."
                )
