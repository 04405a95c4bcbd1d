"""`sfumato report RUN ...`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML file on runs: pictures during training, before and after, curves, metrics and settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, and folders written by `sfumato evaluate --out`; or folders of `sfumato pretrain`"""
    out: Path | None = None
    """HTML file to write; report.html in the first run's folder if not given"""

    def __call__(self) -> int:
        from sfumato.report.build import write_report

        Console(markup=False).print(str(write_report(self.runs, self.out)), highlight=False, soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato report`."""
    return parse_options(Report, "report", arguments)
