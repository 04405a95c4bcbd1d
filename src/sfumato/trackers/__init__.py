"""Trackers: services and files that show the metrics and pictures of runs. One file per tracker."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from sfumato.errors import UserError
from sfumato.plugins import is_path, load_object
from sfumato.trackers.tracker import Tracked, Tracker, Trackers

TRACKERS = {
    "mlflow": "MLflow",
    "swanlab": "SwanLab",
    "tensorboard": "TensorBoard",
    "wandb": "WandB",
}
"""Classes by name; each is in the file `NAME_tracker.py`. Its package is the extra of the same name."""

PACKAGES = {"tensorboard": "tensorboardX"}
"""Packages whose names differ from the tracker's."""


def find_tracker(name: str) -> Callable[[Tracked], Tracker]:
    """Return the class of a tracker by name, or a user's own as `path/to/file.py:Class`.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        if is_path(name):
            return load_object("track", name)
        raise UserError(f"track: unknown tracker {name!r}; give one of {', '.join(TRACKERS)}, or path/to/file.py:Class")
    package = PACKAGES.get(name, name)
    if importlib.util.find_spec(package) is None:
        raise UserError(f"track: {package} is not installed; pip install 'sfumato[{name}]'")
    return getattr(importlib.import_module(f"{__name__}.{name}_tracker"), TRACKERS[name])


def open_trackers(names: tuple[str, ...], run: Tracked, note: Callable[[str], Any]) -> Trackers:
    """Start trackers. One that cannot start is left out with a note: a run does not depend on its trackers.

    Args:
        names: trackers as for `find_tracker`.
        run: what they track.
        note: prints a line of text.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    trackers = Trackers({}, note)
    for name in names:
        kind = find_tracker(name)
        with trackers.guarded(name, "start"):
            trackers.open[name] = kind(run)
    return trackers


__all__ = ["TRACKERS", "Tracked", "Tracker", "Trackers", "find_tracker", "open_trackers"]
