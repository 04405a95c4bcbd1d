"""Files that are complete or absent, what JSON can hold, and whether files have changed."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sfumato.errors import UserError


def write_text(path: Path, text: str) -> None:
    """A file that is complete or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has not: None in their place."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def state(path: Path) -> str:
    """What changes when a file does, or any file in a folder: path, size and time."""
    if not path.is_dir():
        return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256("\n".join(map(state, files)).encode()).hexdigest()[:16]
    return f"{path.resolve()} {len(files)} files {digest}"


def check_writable(field: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before any long work.

    Raises:
        UserError: the message names the field and what stands in the way.
    """
    nearest, option = next(p for p in [folder, *folder.absolute().parents] if p.exists()), field.replace("_", "-")
    if not nearest.is_dir():
        raise UserError(f"{field}: {nearest} is a file, not a folder; choose another --{option}")
    try:
        with TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{field}: nothing can be written in {nearest} ({error.strerror}); choose another --{option}"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary sibling (file or folder), then rename it to `path`, replacing what was there.

    Whenever the process is killed, `path` is the old version, the new one or (a folder that is replaced) absent for an
    instant; it is never half of either.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    try:
        write(temporary)
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _sync(file)
        if path.is_dir():  # folders cannot be replaced in one move: the old one steps aside for an instant
            old = path.with_name(f".{path.name}.old")
            remove(old)
            os.replace(path, old)
            os.replace(temporary, path)
            remove(old)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
