"""`sfumato compare RUN RUN ...`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli.options import parse_options
from sfumato.errors import UserError
from sfumato.files import check_writable

if TYPE_CHECKING:
    from sfumato.report.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare training runs in one table: the settings that differ, rewards, KL, held-out rewards, time per step."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of two or more training runs"""
    csv: Path | None = None
    """file to write the table to, with unrounded numbers; an existing file is not overwritten"""

    def __call__(self) -> int:
        from sfumato.report.comparison import compare, write_csv

        if self.csv is not None:
            check_new(self.csv)
        comparison = compare(self.runs)
        show(comparison, Console(markup=False, highlight=False))
        if self.csv is not None:
            write_csv(comparison, self.csv)
        return 0


def check_new(path: Path) -> None:
    """Check that a file can be created.

    Raises:
        UserError: the path exists, or its folder is not writable.
    """
    if path.exists():
        raise UserError(f"csv: {path} exists; choose another --csv")
    check_writable("csv", path.absolute().parent)


def show(comparison: "Comparison", console: Console) -> None:
    """Print the comparison: a table in a terminal, aligned lines elsewhere."""
    settings = list(comparison.settings) or [("(all settings are equal)", [""] * len(comparison.names))]
    results = [(result.name, result.texts()) for result in comparison.results]
    if console.is_terminal:
        table = Table("", *comparison.names)
        for part in (settings, results):
            table.add_section()
            for name, values in part:
                table.add_row(name, *values)
        console.print(table)
        return
    rows = [("", list(comparison.names)), *settings, ("", [""] * len(comparison.names)), *results]
    for line in aligned([[name, *values] for name, values in rows]):
        console.print(line, soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines in which the columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato compare`."""
    return parse_options(Compare, "compare", arguments)
