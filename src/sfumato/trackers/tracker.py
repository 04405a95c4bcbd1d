"""The protocol of trackers, and a group of them that cannot fail."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sfumato.files import write_text


@dataclass(frozen=True)
class Tracked:
    """What a tracker needs to know about a run when it starts."""

    folder: Path
    """run folder, into which local files go"""
    config: dict[str, Any]
    """settings of the run, as `config.json` stores them"""
    first_step: int
    """number of steps done: above 0 if the run was resumed, and later steps may have been tracked before"""

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.resolve().name

    def identity(self, tracker: str, create: Callable[[], str]) -> str:
        """Return the identifier under which a tracker knows this run, so that a resumed run continues its curves.

        It is kept in `trackers.json`, and created at the first start.
        """
        file = self.folder / "trackers.json"
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if tracker not in known or not self.first_step:
            known[tracker] = create()
            write_text(file, json.dumps(known, indent=1) + "\n")
        return known[tracker]


@runtime_checkable
class Tracker(Protocol):
    """Shows a run's metrics and pictures. The class is called with a `Tracked`, on the main process only.

    A resumed run may repeat steps that it tracked before it was killed; the values are the same.
    """

    def log(self, metrics: dict[str, float], step: int, /) -> None:
        """Show the metrics of a step, all of them finite. Names may have slashes, e.g. reward/clip."""
        ...

    def picture(self, name: str, path: Path, step: int, /) -> None:
        """Show a PNG file as it is after a step."""
        ...

    def close(self) -> None:
        """Send everything that has not been sent."""
        ...


@dataclass(frozen=True)
class Trackers:
    """Trackers of a run. One that fails is left out from then on, with a note; the run goes on."""

    open: dict[str, Tracker]
    """trackers by name"""
    note: Callable[[str], Any]
    """prints a line of text"""

    def log(self, metrics: dict[str, float]) -> None:
        """Show the metrics of a step; values that are not finite are left out."""
        step = int(metrics["step"])
        finite = {name: value for name, value in metrics.items() if name != "step" and math.isfinite(value)}
        for name, tracker in list(self.open.items()):
            with self.guarded(name, f"step {step}"):
                tracker.log(finite, step)

    def picture(self, title: str, path: Path, step: int) -> None:
        """Show a PNG file, if it exists."""
        for name, tracker in list(self.open.items()) if path.exists() else ():
            with self.guarded(name, f"step {step}"):
                tracker.picture(title, path, step)

    def close(self) -> None:
        """Send everything that has not been sent."""
        for name, tracker in list(self.open.items()):
            with self.guarded(name, "end"):
                tracker.close()

    @contextmanager
    def guarded(self, name: str, moment: str) -> Iterator[None]:
        """Leave a tracker out if the block fails, whatever the reason."""
        try:
            yield
        except Exception as error:  # services may raise anything
            self.open.pop(name, None)
            reason = (str(error).splitlines() or [""])[0]
            self.note(f"{moment}: tracker {name} failed and is left out ({type(error).__name__}: {reason})")
