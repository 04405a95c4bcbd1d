"""Atomic writes, values that JSON can store, and detection of changed files."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sfumato.errors import UserError


def claim_folder(field: str, folder: Path, marker: str, *, resume: bool | None = None) -> Any:
    """Check that a folder is empty, or was written by an earlier call of the same kind.

    Args:
        field: option that names the folder, for error messages.
        folder: path of the folder, which need not exist.
        marker: name of the JSON file in which such a call stores its settings.
        resume: True to require an earlier call, False to require an empty folder, None to accept either.

    Returns:
        The content of the marker file; None if there is no such file.

    Raises:
        UserError: the folder contains something else, has nothing to resume, or cannot be written to.
    """
    check_writable(field, folder)
    option, saved = f"--{field.replace('_', '-')}", folder / marker
    if resume and not saved.is_file():
        raise UserError(f"{field}: {folder} has nothing to resume; start without --resume")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and resume is False:
        raise UserError(f"{field}: {folder} is not empty; continue with --resume or choose another {option}")
    if occupied and not saved.is_file():
        raise UserError(f"{field}: {folder} is not empty and has no {marker}; choose another {option}")
    return json.loads(saved.read_text()) if saved.is_file() else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` when the block ends, so the file is never incomplete.

    Unlike with `write_atomically`, a power failure may lose the file.
    """
    yield staging(path)
    os.replace(staging(path), path)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either complete or absent."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot store, by None."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def state(path: Path) -> str:
    """Return a string that changes when a file, or any file in a folder, changes: from path, size and time."""
    if not path.is_dir():
        return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256("\n".join(map(state, files)).encode()).hexdigest()[:16]
    return f"{path.resolve()} {len(files)} files {digest}"


def check_writable(field: str, folder: Path) -> None:
    """Check, before any long work, that a folder can be created and written to.

    Raises:
        UserError: it cannot; the message states the field and the obstacle.
    """
    nearest, option = next(p for p in [folder, *folder.absolute().parents] if p.exists()), field.replace("_", "-")
    if not nearest.is_dir():
        raise UserError(f"{field}: {nearest} is a file, not a folder; choose another --{option}")
    try:
        with TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{field}: {nearest} is not writable ({error.strerror}); choose another --{option}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary sibling (file or folder), then rename it to `path`, replacing what was there.

    If the process is killed at any time, `path` is the old version or the new one, never a mixture. A folder that is
    being replaced is absent for an instant.
    """
    temporary = staging(path)
    remove(temporary)
    try:
        write(temporary)
        settle(path)
    except BaseException:
        remove(temporary)
        raise


def settle(path: Path) -> None:
    """Rename what was written to `staging(path)` to `path`, once it is safe on the disk."""
    temporary = staging(path)
    for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
        _sync(file)
    if path.is_dir():  # a folder cannot be replaced in one operation: the old one is moved away first
        old = path.with_name(f".{path.name}.old")
        remove(old)
        os.replace(path, old)
        os.replace(temporary, path)
        remove(old)
    else:
        os.replace(temporary, path)
    _sync(path.parent)


def staging(path: Path) -> Path:
    """Return the temporary path at which `write_atomically` and `replacing` write `path`."""
    return path.with_name(f".{path.name}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Read the steps in a run's `metrics.jsonl`; a last line that a kill cut off is skipped."""
    return read_lines(run_dir / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read a file with one JSON object per line; a last line that a kill cut off is skipped."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
