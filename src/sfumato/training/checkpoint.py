"""Checkpoints that are complete or absent, and a flag for Ctrl-C."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import torch

from sfumato.errors import UserError


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


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of up to 64 numbers of every tensor: another one once a model was trained on."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, state: dict) -> None:
    """Write tensors, numbers and strings in nested dicts and lists, atomically."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict:
    """Read what `save_state` wrote; no code in the file is run.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: there is no {path}; nothing to resume") from error
    except Exception as error:  # a damaged pickle can fail in any way; the cause is kept
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint: {path} is damaged ({reason}); delete it to resume from the one before") from error


class Interrupt:
    """Whether Ctrl-C (or a polite kill) was asked for; true once it was."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the first request is noted; a second one stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Inside, SIGINT and SIGTERM set the flag, so that a loop can finish its step and save."""
    interrupt = Interrupt()
    previous = {s: signal.signal(s, interrupt.request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
