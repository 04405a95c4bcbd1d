"""`sfumato doctor RUN`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.errors import UserError
from sfumato.files import read_metrics

PAGE = "docs/how-to/troubleshooting.md"
"""Page that explains the findings, in the repository and on the site."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Read a run folder and say why it may not learn: the likely causes, and the options to change."""

    run: tyro.conf.Positional[Path]
    """run folder"""

    def __call__(self) -> int:
        console, count = Console(markup=False), len(read_metrics(self.run))
        if not count:
            raise UserError(f"run: {self.run} has no metrics.jsonl with steps; give the folder of a run")
        if not tell_troubles(console, self.run):
            console.print(f"Nothing conspicuous in {count} steps.", highlight=False)
        return 0


def tell_troubles(console: Console, run: Path) -> bool:
    """Print what may be wrong with a run; return whether there is anything."""
    from sfumato.report.folders import read_config
    from sfumato.training.diagnosis import examine

    config = read_config(run)
    findings = examine(read_metrics(run), config, count_conditions(config))
    for finding in findings:
        text = f"- {finding.cause}\n  {finding.advice}"
        console.print(text, highlight=False, soft_wrap=not console.is_terminal)
    if findings:
        console.print(f"More: {PAGE}", highlight=False)
    return bool(findings)


def count_conditions(config: dict[str, Any]) -> int | None:
    """Return the number of classes that a run draws from; None if its model cannot be asked."""
    from sfumato.families import read_card

    if config.get("prompts"):
        return None
    try:
        return len(config.get("classes") or read_card(config["model"]).class_names) or None
    except (UserError, KeyError):
        return None


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato doctor`."""
    return parse_options(Doctor, "doctor", arguments)
