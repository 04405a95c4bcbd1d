"""Atomic writes, folders in use, steps of a run, values that JSON can store, and detection of changed files."""

import hashlib
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from sfumato.errors import UserError
from sfumato.notes import note

OWN = ".sfumato-"
"""Beginning of the names of files that are only there while a folder is used; they do not count as its contents."""
LOCK, HOLDER = f"{OWN}lock", f"{OWN}holder.json"
"""The file that is locked, and the file that says which process has locked it."""
BEAT, PATIENCE = 5.0, 30.0
"""Seconds between signs of life of a process that holds a folder, and seconds without one after which it is dead."""


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
    unfinished = staging(saved).name  # a call that was killed while it wrote the marker
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    occupied = any(not name.startswith(OWN) and name != unfinished for name in names)
    if occupied and resume is False:
        raise UserError(f"{field}: {folder} is not empty; continue with --resume or choose another {option}")
    if occupied and not saved.is_file():
        raise UserError(f"{field}: {folder} is not empty and has no {marker}; choose another {option}")
    return json.loads(saved.read_text()) if saved.is_file() else None


@contextmanager
def locked(field: str, folder: Path) -> Iterator[None]:
    """Hold a folder until the block ends, so that no other process writes to it. The folder is created if necessary,
    and removed if the block leaves it empty.

    The operating system frees the lock of a process that is killed. Not all file systems share locks between machines,
    so the holder gives signs of life, and a start on another machine waits up to `PATIENCE` seconds for one.

    Args:
        field: option that names the folder, for error messages.
        folder: path of the folder.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    check_writable(field, folder)
    created = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder, ended = FileLock(folder / LOCK), folder / HOLDER, threading.Event()
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(_held(field, folder, _read_holder(holder))) from None
    try:
        other = _read_holder(holder)
        if other.get("host", socket.gethostname()) != socket.gethostname() and _is_alive(holder):
            raise UserError(_held(field, folder, other))
        write_text(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        beats = threading.Thread(target=_beat, args=(holder, ended), daemon=True)
        beats.start()
        try:
            yield
        finally:
            ended.set()
            beats.join()
            for file in (holder, folder / LOCK):
                file.unlink(missing_ok=True)
    finally:
        lock.release()
        for path in created:
            with suppress(OSError):  # it is no longer empty
                path.rmdir()


def _beat(holder: Path, ended: threading.Event) -> None:
    """Give signs of life until the event is set: the time of the file changes."""
    while not ended.wait(BEAT):
        with suppress(OSError):  # the user may remove the file
            os.utime(holder)


def _is_alive(holder: Path) -> bool:
    """Wait for a sign of life of a process on another machine. The clocks of the two need not agree."""
    first, began = _moment(holder), time.monotonic()
    while first is not None and time.monotonic() - began < PATIENCE:
        time.sleep(BEAT / 5)
        if _moment(holder) != first:
            return True
    return False


def _moment(holder: Path) -> int | None:
    """Return the time of the file in nanoseconds, None if it does not exist."""
    try:
        with holder.open() as file:  # a network file system brings its cache up to date when a file is opened
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _read_holder(holder: Path) -> dict[str, Any]:
    """Return the process that holds a folder, or held it until it was killed; empty if there is none."""
    try:
        return json.loads(holder.read_text())
    except (OSError, ValueError):
        return {}


def _held(field: str, folder: Path, other: dict[str, Any]) -> str:
    """Return the message that another process holds a folder."""
    which = f"process {other['pid']} on {other['host']}" if other else "another process"
    return f"{field}: {folder} is in use by {which}; wait until it ends, or choose another --{field.replace('_', '-')}"


def step_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder whose names are exactly `step-N` as a run writes them, in order of their steps.

    Anything else belongs to the user: copies, archives, links.
    """
    own = [path for path in folder.glob("step-*") if re.fullmatch(r"step-([0-9]{6}|[1-9][0-9]{6,})", path.name)]
    return sorted((path for path in own if path.is_dir() and not path.is_symlink()), key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps done in the name of a run's `step-N` folder."""
    return int(path.name.removeprefix("step-"))


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
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


WHOLE, BLOCK = 2**26, 2**12
"""Number of bytes of a file or folder up to which all its bytes identify it, and the size of the blocks beyond."""


def state(path: Path) -> str:
    """Return a string that changes when a file, or any file in a folder, changes: from sizes and contents.

    It does not depend on times, nor on where the file or folder is. Of files that have more than `WHOLE` bytes
    together, each counts with blocks at even distances, among them its first and its last one. The last bytes of .npz
    and PNG files contain checksums of all others, and training changes every block of a file of weights.
    """
    if not path.is_dir():
        return f"{path.stat().st_size} bytes {_digest(path, WHOLE).hex()}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    share = WHOLE // max(1, len(files)) if sum(file.stat().st_size for file in files) > WHOLE else WHOLE
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.relative_to(path)) + b"\0" + _digest(file, share))
    return f"{len(files)} files {digest.hexdigest()[:16]}"


def _digest(path: Path, limit: int) -> bytes:
    """Return a digest of the size and content of a file; beyond `limit` bytes, of blocks at even distances."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with suppress(OSError), path.open("rb") as file:  # of a file without permission, only the size counts
        if size <= max(limit, 2 * BLOCK):
            for part in iter(lambda: file.read(2**20), b""):
                digest.update(part)
        else:
            last = max(1, limit // BLOCK - 1)
            for number in range(last + 1):
                file.seek((size - BLOCK) * number // last)
                digest.update(file.read(BLOCK))
    return digest.digest()[:8]


def check_writable(field: str, folder: Path) -> None:
    """Check, before any long work, that a folder can be created and written to.

    Raises:
        UserError: it cannot; the message states the field and the obstacle.
    """
    nearest, option = next(p for p in [folder, *folder.absolute().parents] if p.exists()), field.replace("_", "-")
    if not nearest.is_dir():
        raise UserError(f"{field}: {nearest} is a file, not a folder; choose another --{option}")
    try:
        with TemporaryDirectory(dir=nearest, prefix=OWN):
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
    # An own file stays one: "..sfumato-holder.json.tmp" would count as a folder's contents.
    return path.with_name(f".{path.name.lstrip('.')}.tmp")


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
    """Read the steps in a run's `metrics.jsonl`, as `read_lines` does."""
    return read_lines(run_dir / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read a file with one JSON object with a `step` per line. Other lines are left out, with a note that counts them,
    except for a last line that a kill cut off."""
    lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
    rows = {number: _row(line) for number, line in enumerate(lines, start=1) if line.strip()}
    foreign = [number for number, row in rows.items() if row is None and number < len(lines)]
    if foreign:
        note(f"{path}: left out {len(foreign)} lines that no run wrote, the first in line {foreign[0]}")
    return [row for row in rows.values() if row is not None]


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int | float) else None
