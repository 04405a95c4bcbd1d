"""Trackers of pre-training, whose stages follow one another on one axis of steps."""

import dataclasses
from pathlib import Path

from sfumato.notes import note
from sfumato.pretraining.pretrain_config import AnyPretrainConfig, PretrainConfig
from sfumato.trackers import Tracked, Trackers, find_tracker, open_trackers


class TrackedStages:
    """Trackers that get the statistics of all stages, under names such as `generator/loss`."""

    def __init__(self, names: tuple[str, ...], run_dir: Path, config: AnyPretrainConfig):
        """Check the names; the trackers start with the first statistics, when the run folder exists.

        Raises:
            UserError: there is no such tracker, or its package is not installed.
        """
        for name in names:
            find_tracker(name)
        self.names, self.run_dir, self.config = names, run_dir, config
        self.trackers: Trackers | None = None

    def log(self, stage: str, done: int, stats: dict[str, float]) -> None:
        """Show the statistics of the step that makes `done` steps of the stage."""
        first_stage = self.config.tokenizer_training.steps if isinstance(self.config, PretrainConfig) else 0
        step = done + (first_stage if stage == "generator" else 0)
        if self.trackers is None:
            run = Tracked(self.run_dir, dataclasses.asdict(self.config), step - 1)
            self.trackers = open_trackers(self.names, run, note)
        self.trackers.log({"step": step, **{f"{stage}/{name}": value for name, value in stats.items()}})

    def close(self) -> None:
        """Send everything that has not been sent."""
        if self.trackers is not None:
            self.trackers.close()
