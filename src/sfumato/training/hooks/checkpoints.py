"""Checkpoints of a run, and resuming from the newest."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from sfumato.engine.checkpoint import load_state
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.errors import UserError
from sfumato.families.library import holds_model
from sfumato.files import remove, settle, staging, step_folders
from sfumato.rewards import WeightedSum
from sfumato.training.hooks.hook import Progress


@dataclass
class Checkpoints:
    """Hook that writes a folder per checkpoint: the engine's files, and in `state.pt` the state of the random generator
    and those of rewards.

    A checkpoint is written while the next step runs, and complete when that step ends.
    """

    folder: Path
    engine: Engine
    process: Process
    rng: torch.Generator
    reward: WeightedSum
    every: int
    keep: int
    _writing: Future[None] | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))

    def __call__(self, progress: Progress) -> None:
        self.finish()
        if progress.batch is not None and (progress.due(self.every) or progress.stop):
            self.save(progress.step)
            if progress.stop or progress.is_last:
                self.finish()

    def save(self, step: int) -> None:
        """Start to write the checkpoint of a step unless it exists. All processes must call this together."""
        self.finish()
        existing, path = self.all(), self.folder / f"step-{step:06d}"
        previous = existing[-1] if existing else None
        if self.process.is_main:
            remove(staging(path))
            # Delete old checkpoints first, so that the disk never holds more than `keep` (or two if `keep` is 1).
            for old in existing[: max(0, len(existing) - max(1, self.keep - 1))]:
                remove(old)
        if self.process.any(path in existing):
            return
        if self.process.is_main:
            set_aside(path)
        wait = self.engine.save(staging(path), previous)
        state = {"step": step, "rng": self.rng.get_state(), "rewards": self.reward.state_dict()}
        self._writing = self._pool.submit(self._write, path, wait, state)

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, path: Path, wait: Callable[[], None], state: dict[str, object]) -> None:
        wait()
        if self.process.is_main:
            torch.save(state, staging(path) / "state.pt")
            settle(path)
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
        existing = self.all()
        if not existing:
            return 0
        newest, previous = existing[-1], existing[-2:-1]
        try:
            state = load_state(newest / "state.pt")
            if "optimizer" not in state and not (newest / "engine.pt").is_file():  # version 0.1 has one file for both
                raise UserError(f"checkpoint: {newest}/engine.pt does not exist; restore it")
            self.engine.load(newest)
        except UserError as error:
            if str(newest) not in str(error):  # another base model
                raise
            fault = str(error).partition(": ")[2].partition(";")[0]
            remedy = f"resume from {previous[0].name}" if previous else "start again from the first step"
            raise UserError(f"checkpoint: {newest} is damaged: {fault}; delete this folder to {remedy}") from error
        self.rng.set_state(state["rng"])
        self.reward.load_state_dict(state.get("rewards", {}))  # version 0.1 has none
        return state["step"]


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first. Whatever else is there belongs to the user."""
    return [path for path in step_folders(folder) if holds_model(path / "model") and (path / "state.pt").is_file()]


def set_aside(path: Path) -> None:
    """Give what is at the path of a checkpoint but is none another name, so that nothing of the user's is replaced."""
    if path.exists() or path.is_symlink():
        names = (path.with_name(f"{path.name}-aside-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists() and not name.is_symlink()))
