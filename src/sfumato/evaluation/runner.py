"""An evaluation: one suite on several targets, and the folder that it writes."""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from sfumato.errors import UserError
from sfumato.evaluation.measurement import Measurement, read_measurement, write_measurement
from sfumato.evaluation.tables import Results, to_json, to_latex, to_markdown
from sfumato.evaluation.targets import Target
from sfumato.files import state, write_text

Measure = Callable[[Target], Measurement]
"""What a suite does with one target."""


@runtime_checkable
class Suite(Protocol):
    """What is measured: a frozen dataclass whose fields are the options."""

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        """Load what is needed, and return what measures a target. What all targets share is kept in the folder.

        Raises:
            UserError: an option is wrong, or something is missing; before any long work.
        """
        ...


@runtime_checkable
class Plotted(Suite, Protocol):
    """A suite whose results are also a plot."""

    def plot(self, results: Results, path: Path) -> None:
        """Write a PNG file."""
        ...


def evaluate(
    suite: Suite,
    targets: Sequence[str],
    out: Path | None,
    device: torch.device,
    say: Callable[[str], None],
    option: str = "out",
) -> Results:
    """Measure all targets; with `out`, write the results there, and go on where an earlier call stopped.

    `out` then has `evaluation.json` (what is measured), a folder a target (its images, and `measurement.json`), and
    `results.json`, `results.md` and `results.tex`, and of a suite that is `Plotted` `results.png`. What is wrong with
    `out` is said of the `option` that named it.

    Raises:
        UserError: an option or a target is wrong, or `out` holds something else.
    """
    if not targets:
        raise UserError("target: none is given; name a model, a folder of images or an .npz file")
    with nullcontext(out) if out else tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        names = label(targets)
        found = [Target(name, folder / part, device) for name, part in zip(targets, names, strict=True)]
        options = describe(suite)
        settings = {
            "suite": options,
            "files": named_files(options, folder),
            "targets": {t.name: t.identity() for t in found},
        }
        check_folder(folder, settings, option)
        measure = prepare(suite, device, folder, settings)
        results = {}
        for target, name in zip(found, names, strict=True):
            results[name] = measured(target, measure)
            say(f"{name}: measured")
        for file, table in (("json", to_json), ("md", to_markdown), ("tex", to_latex)):
            write_text(folder / f"results.{file}", table(results))
        if isinstance(suite, Plotted):
            suite.plot(results, folder / "results.png")
        return results


def prepare(suite: Suite, device: torch.device, folder: Path, settings: dict) -> Measure:
    """What measures a target; the folder is marked as this evaluation's, unless the options are refused."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(settings, indent=1) + "\n")
    try:
        return suite.prepare(device, folder)
    except UserError:
        if [file.name for file in folder.iterdir()] == ["evaluation.json"]:
            shutil.rmtree(folder)
        raise


def measured(target: Target, measure: Measure) -> Measurement:
    """The measurement of a target, read if it is there."""
    path = target.folder / "measurement.json"
    if not path.is_file():
        target.folder.mkdir(parents=True, exist_ok=True)
        write_measurement(path, measure(target))
    return read_measurement(path)


def label(targets: Sequence[str]) -> list[str]:
    """Short names of targets, different ones, that can be folders: the last parts of their paths.

    Raises:
        UserError: a target is given twice.
    """
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"target: {target} is given twice; give it once")
    parts = [[re.sub(r"[^\w.-]+", "-", part) for part in Path(t).parts if part not in ("/", "..")] for t in targets]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-length:]) or "here" for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}-{'-'.join(p)}" for number, p in enumerate(parts, start=1)]


def describe(suite: Suite) -> dict:
    """A suite and its options as JSON holds them."""
    assert dataclasses.is_dataclass(suite)
    return json.loads(json.dumps({"name": type(suite).__name__, **dataclasses.asdict(suite)}, default=str))


def named_files(options: object, out: Path) -> dict[str, str]:
    """The files and folders that options name, also as path.py:function and with options of their own after a ?, each
    with what changes when it does; not the folder that is written to, nor one that it is in."""
    if isinstance(options, dict | list):
        parts = options.values() if isinstance(options, dict) else options
        return {name: found for part in parts for name, found in named_files(part, out).items()}
    name = str(options).partition("?")[0]
    paths = [name, name.rpartition(":")[0]] if isinstance(options, str) else []
    there = [path for path in paths if path and os.path.exists(path)]
    return {path: state(Path(path)) for path in there if not out.resolve().is_relative_to(Path(path).resolve())}


def check_folder(folder: Path, settings: dict, option: str) -> None:
    """Refuse to write into another evaluation, or another thing altogether.

    Raises:
        UserError: the message says what differs.
    """
    saved = folder / "evaluation.json"
    if not saved.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{option}: {folder} is not empty and holds no evaluation; choose another --{option}")
        return
    before, now = (flat(json.loads(text)) for text in (saved.read_text(), json.dumps(settings)))
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{option}: {folder} holds an evaluation with {name} {before.get(name)!r}, not {now.get(name)!r}; "
                f"choose another --{option}"
            )


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested dictionaries as one, with dotted names."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
