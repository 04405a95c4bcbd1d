"""Checkpoints of a run, and resuming from the newest."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.engine.checkpoint import load_state
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.files import remove, staging, write_atomically
from sfumato.training.hooks.hook import Progress


@dataclass(frozen=True)
class Checkpoints:
    """Hook that writes a folder per checkpoint: the engine's files, and the random generator's state in `state.pt`."""

    folder: Path
    engine: Engine
    process: Process
    rng: torch.Generator
    every: int
    keep: int

    def __call__(self, progress: Progress) -> None:
        if progress.batch is None or not (progress.due(self.every) or progress.stop):
            return
        existing = self.all()
        previous = existing[-1] if existing else None
        path = self.folder / f"step-{progress.step:06d}"
        if not self.process.is_main:
            self.engine.save(staging(path), previous)
            return
        # Delete old checkpoints first, so that the disk never holds more than `keep` (or two if `keep` is 1).
        for old in existing[: max(0, len(existing) - max(1, self.keep - 1))]:
            remove(old)

        def write(place: Path) -> None:
            self.engine.save(place, previous)
            torch.save({"step": progress.step, "rng": self.rng.get_state()}, place / "state.pt")

        write_atomically(path, write)
        for old in self.all()[: -self.keep]:
            remove(old)

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return checkpoints_in(self.folder)

    def restore(self) -> int:
        """Restore the newest checkpoint; return the number of steps done, 0 without a checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or the run started from another base model.
        """
        if not self.all():
            return 0
        newest = self.all()[-1]
        state = load_state(newest / "state.pt")
        self.engine.load(newest)
        self.rng.set_state(state["rng"])
        return state["step"]


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*"))
