"""Read the contents of run and evaluation folders for the page. Missing or broken files become notes."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.data.pictures import COLUMNS, tiles
from sfumato.errors import UserError
from sfumato.evaluation.runner import flat
from sfumato.training.train_config import upgraded

MAX_POINTS = 1000
"""Largest number of points of a curve."""
MAX_MOMENTS = 20
"""Largest number of steps with pictures."""
MAX_SIDE = 192
"""Largest side of an embedded picture in pixels; larger pictures are reduced."""
SMALL = 96
"""Largest side in pixels of a picture that is stored at higher quality, because the page enlarges it."""

Row = dict[str, Any]
"""A JSON object."""


def read_run(folder: Path, name: str) -> tuple[Row, Row]:
    """Return the data of a run for the page, and its settings with dotted names.

    Raises:
        UserError: `sfumato train` did not write the folder.
    """
    config = read_config(folder)
    notes: list[str] = []
    metrics = read_rows(folder / "metrics.jsonl", notes)
    held_out = read_rows(folder / "held_out.jsonl", notes)
    fixed_set = read_rows(folder / "fixed_set.jsonl", notes)
    moments = read_moments(folder / "samples", fixed_set, notes)
    if not all(moment["rewards"] for moment in moments[:1] + moments[-1:]):
        notes.append("The rewards of individual pictures were not saved, so pairs cannot be sorted.")
    names = next((row["names"] for row in reversed(fixed_set) if isinstance(row.get("names"), list)), [])
    measured = [{k: v for k, v in row.items() if "_std" not in k} for row in held_out]
    run = {
        "name": name,
        "model": str(config.get("model", "")),
        "weights": weights_of(folder, config),
        "reward": config["reward"],
        "steps": config["steps"],
        "done": metrics[-1]["step"] if metrics else 0,
        "images_per_step": config.get("groups_per_step", 0) * config.get("group_size", 0),
        "evaluation": read_optional(folder / "evaluation.json", notes),
        # The metrics have the held-out rewards too, but not those of step 0.
        "curves": curves(metrics) | curves(measured, "held_out/") | curves(fixed_set, "fixed_set/"),
        "starts": read_starts(folder, notes),
        "moments": moments,
        "names": names,
        "notes": notes,
    }
    return run, flat(config)


def read_config(folder: Path) -> Row:
    """Return the settings of a training run, in the current form.

    Raises:
        UserError: `sfumato train` did not write the folder.
    """
    config = read_object(folder / "config.json")
    if not isinstance(config.get("reward"), dict) or "steps" not in config:
        raise UserError(f"run: {folder} is not from `sfumato train`: its config.json has no reward; leave it out")
    return upgraded(config)


def check_distinct(folders: Sequence[Path]) -> None:
    """Check that no folder is given twice, under whatever path.

    Raises:
        UserError: one is.
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"run: {folder} is given twice; give it once")


def read_evaluation(folder: Path, name: str) -> Row:
    """Return the data of a folder that `sfumato evaluate --out` wrote.

    Raises:
        UserError: the evaluation is not finished.
    """
    if not (folder / "results.json").is_file():
        raise UserError(f"run: the evaluation in {folder} is not finished; run the same `sfumato evaluate` again")
    suite = read_object(folder / "evaluation.json").get("suite", {})
    settings = {setting: as_text(value) for setting, value in flat(suite).items() if setting != "name"}
    return {
        "name": name,
        "suite": suite.get("name", ""),
        "settings": settings,
        "targets": read_object(folder / "results.json"),
    }


def weights_of(folder: Path, config: Row) -> Row:
    """Return where the weights of a run come from, and the newest ones that it trained, relative to its folder."""
    trained = sorted(folder.glob(f"checkpoints/step-{'[0-9]' * 6}"))
    named = {"network": config.get("weights"), "tokenizer": config.get("tokenizer")}
    return {
        "base": str(config.get("model", "")),
        **{part: str(file) for part, file in named.items() if file},
        **({"trained": trained[-1].relative_to(folder).as_posix()} if trained else {}),
    }


def read_starts(folder: Path, notes: list[str]) -> list[Row]:
    """Return the starts that `run.json` records: version, command, host, time and seconds (None if killed or still
    running). Runs of older versions have no such file."""
    path = folder / "run.json"
    try:
        starts = json.loads(path.read_text("utf-8")) if path.is_file() else []
    except (ValueError, RecursionError):
        starts = None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        notes.append("run.json is broken and left out.")
        return []
    return starts


def curves(rows: Sequence[Row], prefix: str = "") -> dict[str, list[list[float]]]:
    """Return the steps and values of every number in the rows; long curves keep evenly spaced points, unchanged."""
    points: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = points.setdefault(prefix + name, [[], []])
                steps.append(row["step"])
                values.append(value)
    return {name: [thinned(part, MAX_POINTS) for part in curve] for name, curve in points.items()}


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` evenly spaced items, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def read_moments(folder: Path, fixed_set: Sequence[Row], notes: list[str], most: int = MAX_MOMENTS) -> list[Row]:
    """Return the pictures of the same conditions and seeds over the course of training, and their rewards if saved."""
    rewards = {row["step"]: row.get("rewards") for row in fixed_set}
    moments = []
    for path in thinned(sorted(folder.glob(f"step-{'[0-9]' * 6}.png")), most):
        step = int(path.stem.removeprefix("step-"))
        try:
            with Image.open(path) as sheet:
                cut = tiles(sheet.convert("RGB"), COLUMNS)
        except OSError:
            notes.append(f"{path.name} cannot be read and is left out.")
            continue
        known = rewards.get(step)
        known = known if isinstance(known, list) and len(known) == len(cut) else None
        moments.append({"step": step, "images": [embedded(tile) for tile in cut], "rewards": known})
    return moments


def embedded(picture: Image.Image) -> str:
    """Encode a picture as a data URL."""
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90 if max(picture.size) <= SMALL else 80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def differences(settings: Sequence[Row]) -> list[Row]:
    """Return all settings of all runs: name, value in each run (None if it has none), and whether the values differ."""
    rows = []
    for name in dict.fromkeys(name for run in settings for name in run):
        values = [as_text(run[name]) if name in run else None for run in settings]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows


def as_text(value: object) -> str:
    """Return the value of a setting as readable text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_rows(path: Path, notes: list[str]) -> list[Row]:
    """Read a file with one JSON object per line and sort the objects by step; a note counts the broken lines, which are
    left out."""
    rows, broken = {}, 0
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            broken += 1
    if broken:
        notes.append(f"{path.name}: {broken} broken {'line is' if broken == 1 else 'lines are'} left out.")
    return [rows[step] for step in sorted(rows)]


def read_optional(path: Path, notes: list[str]) -> Row:
    """Read a JSON object from a file; return an empty one if the file is missing or broken."""
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError:
        notes.append(f"{path.name} is broken and left out.")
        return {}


def read_object(path: Path) -> Row:
    """Read a JSON object from a file.

    Raises:
        UserError: the file does not contain a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"run: {path} is not JSON ({error}); fix it or leave the folder out") from error
    if not isinstance(content, dict):
        raise UserError(f"run: {path} does not contain a JSON object; fix it or leave the folder out")
    return content
