"""Run sections of a report in processes of their own, and write their tables."""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

Cell = str | int | float | None
Row = dict[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the report."""

    title: str
    rows: Callable[[], Iterator[Row]]
    """the measurements, one row after another"""
    limit: float
    """time limit in seconds"""
    note: str = ""
    """what the columns mean"""


@dataclass(kw_only=True)
class Result:
    """What came of a section."""

    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    """empty if the section is complete"""


def work(rows: Callable[[], Iterator[Row]], sender: Connection) -> None:
    """Send rows as they come, and in the end the error, or "" if there was none."""
    try:
        for row in rows():
            sender.send(row)
        sender.send("")
    except Exception as error:
        traceback.print_exc()
        reason, *_ = str(error).splitlines() or [""]
        sender.send(f"{type(error).__name__}: {reason}")


def run_section(section: Section) -> Result:
    """Run a section in a process of its own; whatever happens there is in the result."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(section.rows, sender))
    result, began = Result(), time.monotonic()
    child.start()
    sender.close()  # so that `recv` notices the end of the child
    try:
        while receiver.poll(max(0.0, began + section.limit - time.monotonic())):
            message = receiver.recv()
            if isinstance(message, str):
                result.error = message
                break
            print("  ", ", ".join(f"{name} {shown(value)}" for name, value in message.items() if value is not None))
            result.rows.append(message)
        else:
            result.error = f"not finished after {section.limit:g} s"
            child.kill()
    except EOFError:
        child.join()
        result.error = f"its process ended with status {child.exitcode}"
    child.join(10)  # it may have output left to write
    child.kill()
    child.join()
    result.seconds = time.monotonic() - began
    return result


def shown(value: Cell) -> str:
    """Return the text of a table's cell: numbers with three digits, or as integers if they are large."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table; a row may lack columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(machine: str, command: str, named: Mapping[str, Section], results: Mapping[str, Result]) -> str:
    """Return the text of gpu.md."""
    parts = ["# Acceptance on a GPU", f"    {command}", machine]
    for name, result in results.items():
        section = named[name]
        parts += [f"## {section.title}", *([section.note] if section.note else [])]
        parts += [table(result.rows)] if result.rows else []
        parts += [f"**Failed** after {result.seconds:.0f} s: `{result.error}`"] if result.error else []
        parts += [] if result.error else [f"{result.seconds:.0f} s, including the start of the process."]
    return "\n\n".join(parts) + "\n"


def accept(named: Mapping[str, Section], machine: str, command: str, folder: Path) -> int:
    """Run sections and write gpu.md and gpu.json to a folder, after each section anew; return the exit status."""
    results: dict[str, Result] = {}
    for name, section in named.items():
        print(f"{name}: {section.title}")
        results[name] = run_section(section)
        print(f"   {results[name].error or 'done'} ({results[name].seconds:.0f} s)")
        values = {key: asdict(result) for key, result in results.items()}
        (folder / "gpu.json").write_text(json.dumps({"machine": machine, "command": command, **values}, indent=1))
        (folder / "gpu.md").write_text(report(machine, command, named, results))
    return int(any(result.error for result in results.values()))
