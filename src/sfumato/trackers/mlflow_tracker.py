"""MLflow."""

import os
from pathlib import Path
from typing import Any

import mlflow  # pyright: ignore[reportMissingImports]: an extra that the tests do without

from sfumato.trackers.tracker import Tracked


class MLflow:
    """Logs to the experiment `sfumato`, or to `MLFLOW_EXPERIMENT_NAME`, of the server in `MLFLOW_TRACKING_URI`."""

    def __init__(self, run: Tracked):
        self.client = mlflow.MlflowClient()
        self.id = run.identity("mlflow", lambda: self.create(run.name))
        self.client.update_run(self.id, status="RUNNING")
        if not run.first_step:
            for name, value in flat(run.config).items():
                self.client.log_param(self.id, name, value)

    def create(self, name: str) -> str:
        """Create a run on the server and return its identifier."""
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sfumato")
        known = self.client.get_experiment_by_name(wanted)
        experiment = known.experiment_id if known else self.client.create_experiment(wanted)
        return self.client.create_run(experiment, run_name=name).info.run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step."""
        for name, value in metrics.items():
            self.client.log_metric(self.id, allowed(name), value, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a picture as an artifact."""
        self.client.log_artifact(self.id, str(path), name)

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.id)


def flat(config: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Return settings by names that MLflow allows, sections before a dot."""
    settings = {}
    for name, value in config.items():
        settings |= flat(value, f"{section}{name}.") if isinstance(value, dict) else {allowed(section + name): value}
    return settings


def allowed(name: str) -> str:
    """Replace characters that MLflow does not allow in names."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
