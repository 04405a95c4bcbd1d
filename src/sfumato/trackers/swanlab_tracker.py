"""SwanLab."""

import os
import uuid
from pathlib import Path

import swanlab  # pyright: ignore[reportMissingImports]: an extra that the tests do without

from sfumato.trackers.tracker import Tracked


class SwanLab:
    """Logs to the project `sfumato`, or to `SWANLAB_PROJ_NAME`; `SWANLAB_MODE=offline` or `local` writes files only."""

    def __init__(self, run: Tracked):
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", "sfumato"),
            experiment_name=run.name,
            id=run.identity("swanlab", lambda: uuid.uuid4().hex[:21]),  # the service wants 21 characters
            resume="allow",
            logdir=str(run.folder / "swanlog"),
            config=run.config,
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step; the service drops steps that it already has."""
        swanlab.log(metrics, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        swanlab.log({name: swanlab.Image(str(path))}, step=step)

    def close(self) -> None:
        """Send everything that has not been sent."""
        swanlab.finish()
