"""The command that writes a report of runs."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML file about runs: pictures through training, before and after, curves, figures, settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, and folders that `sfumato evaluate --out` wrote"""
    out: Path | None = None
    """HTML file to write; report.html in the first run's folder if not given"""

    def __call__(self) -> int:
        from sfumato.report.build import write_report

        Console().print(str(write_report(self.runs, self.out)), highlight=False, soft_wrap=True, markup=False)
        return 0


COMMANDS = {"report": (Report, "write a report of runs: one HTML file with pictures, curves, figures and settings")}
"""Commands by name, each with one line of help."""
