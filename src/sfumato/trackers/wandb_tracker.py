"""Weights & Biases."""

import os
import uuid
from pathlib import Path

import wandb

from sfumato.trackers.tracker import Tracked


class WandB:
    """Logs to the project `sfumato`, or to `WANDB_PROJECT`; `WANDB_MODE=offline` writes files for `wandb sync`."""

    def __init__(self, run: Tracked):
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sfumato"),
            name=run.name,
            id=run.identity("wandb", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=run.folder,
            config=run.config,
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step; the service drops steps that it already has."""
        self.run.log(metrics, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        self.run.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Send everything that has not been sent."""
        self.run.finish()
