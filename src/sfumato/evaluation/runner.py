"""Evaluations: measure several targets with one suite, and write a folder with the results."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from sfumato.errors import UserError
from sfumato.evaluation.measurement import Measurement, read_measurement, write_measurement
from sfumato.evaluation.named_files import named_files
from sfumato.evaluation.tables import Results, to_json, to_latex, to_markdown
from sfumato.evaluation.targets import Target
from sfumato.files import OWN, claim_folder, locked, write_text

Measure = Callable[[Target], Measurement]
"""Measures one target with a suite."""


@runtime_checkable
class Suite(Protocol):
    """A set of measurements: a frozen dataclass whose fields are the options."""

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        """Load networks and data, and return a function that measures a target. Data that all targets share is stored
        in the folder.

        Raises:
            UserError: an option is wrong, or something is missing; raised before any long work.
        """
        ...


@runtime_checkable
class Plotted(Suite, Protocol):
    """A suite that also plots its results."""

    def plot(self, results: Results, path: Path) -> None:
        """Plot the results to a PNG file."""
        ...


def evaluate(
    suite: Suite,
    targets: Sequence[str],
    out: Path | None,
    device: torch.device,
    say: Callable[[str], None],
    option: str = "out",
) -> Results:
    """Measure all targets. With `out`, write the results there, and continue where an earlier call stopped.

    `out` then contains `evaluation.json` (the suite, its options and the targets), one folder per target (its images
    and `measurement.json`), `results.json`, `results.md`, `results.tex` and, if the suite is `Plotted`, `results.png`.
    Error messages about `out` name the `option` that set it.

    Raises:
        UserError: an option or a target is wrong, or `out` contains something else.
    """
    if not targets:
        raise UserError("target: no target is given; name a model, a folder of images or an .npz file")
    with nullcontext(out) if out else tempfile.TemporaryDirectory() as place, locked(option, Path(place)):
        folder = Path(place)
        names = label(targets)
        opened = [Target(name, folder / part, device) for name, part in zip(targets, names, strict=True)]
        settings = {
            "suite": describe(suite),
            "files": named_files(suite, folder),
            "targets": {n: {"path": t.name, "state": t.identity()} for n, t in zip(names, opened, strict=True)},
        }
        check_folder(folder, settings, option)
        measure = prepare(suite, device, folder, settings)
        results = {}
        for target, name in zip(opened, names, strict=True):
            results[name] = measured(target, measure)
            say(f"{name}: measured")
        for file, table in (("json", to_json), ("md", to_markdown), ("tex", to_latex)):
            write_text(folder / f"results.{file}", table(results))
        if isinstance(suite, Plotted):
            suite.plot(results, folder / "results.png")
        return results


def prepare(suite: Suite, device: torch.device, folder: Path, settings: dict) -> Measure:
    """Mark the folder as this evaluation's, and return the function that measures a target.

    If the suite refuses its options, the mark is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(settings, indent=1) + "\n")
    try:
        return suite.prepare(device, folder)
    except UserError:
        if [file.name for file in folder.iterdir() if not file.name.startswith(OWN)] == ["evaluation.json"]:
            (folder / "evaluation.json").unlink()
        raise


def measured(target: Target, measure: Measure) -> Measurement:
    """Return the measurement of a target, from its file if that exists."""
    path = target.folder / "measurement.json"
    if not path.is_file():
        target.folder.mkdir(parents=True, exist_ok=True)
        write_measurement(path, measure(target))
    return read_measurement(path)


def label(targets: Sequence[str]) -> list[str]:
    """Return short, distinct names for targets that are valid folder names: the last parts of their paths.

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
    """Return a suite and its options as a JSON object."""
    assert dataclasses.is_dataclass(suite)
    return json.loads(json.dumps({"name": type(suite).__name__, **dataclasses.asdict(suite)}, default=str))


def check_folder(folder: Path, settings: dict, option: str) -> None:
    """Refuse to write into a folder with another evaluation or other files.

    Files, folders and targets are compared by content, so they may have been moved or copied.

    Raises:
        UserError: the folder has other contents; the message names the difference.
    """
    saved = claim_folder(option, folder, "evaluation.json")
    if saved is None:
        return
    before, now = flat(saved), flat(json.loads(json.dumps(settings)))
    contents_before, contents_now = contents(before), contents(now)
    for name in {**contents_now, **contents_before}:
        if contents_before.get(name) == contents_now.get(name):
            continue
        if before.get(name) == now.get(name):  # the same path
            difference = f"another content of {name} {now.get(name)!r}"
        else:
            difference = f"{name} {before.get(name)!r}, not {now.get(name)!r}"
        raise UserError(f"{option}: {folder} contains an evaluation with {difference}; choose another --{option}")


def contents(settings: dict[str, object]) -> dict[str, object]:
    """Return flat settings for a comparison: paths in options of the suite are replaced by what is there, and other
    paths are left out."""
    values = {name: value for name, value in settings.items() if name.startswith("suite.")}
    replaced = {name: settings.get(f"files.{value}", value) for name, value in values.items()}
    options = {f"files.{value}" for value in values.values()}
    rest = {name: value for name, value in settings.items() if name not in values and name not in options}
    return {**replaced, **{name: value for name, value in rest.items() if not name.endswith(".path")}}


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Flatten nested dictionaries into one with dotted names."""
    flattened: dict[str, object] = {}
    for name, value in values.items():
        flattened |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flattened
