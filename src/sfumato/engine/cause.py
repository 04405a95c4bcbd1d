"""The cause of a failure as one line, and the file in which the launcher looks for it. Nothing here imports torch."""

import errno
import json
import os
import time
from pathlib import Path

from sfumato.errors import SharedError, UserError

FINISHED, BUG, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


def status_of(error: BaseException) -> int:
    """Return the exit status of a process that this exception ends."""
    if isinstance(error, UserError):
        return BAD_INPUT
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else BUG


def cause_of(error: BaseException) -> str:
    """Return what happened in one line. If there are several processes, it begins with this process's rank, unless
    all processes raise the error together: then its message already says where it comes from."""
    message = " ".join(str(error).split())
    if not isinstance(error, UserError):
        first = str(error).strip().partition("\n")[0]
        message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return f"rank {os.environ['RANK']}: {message}" if several and not isinstance(error, SharedError) else message


def is_full_disk(error: BaseException) -> bool:
    """Return whether a file could not be written for lack of space, as the system, safetensors or torch report it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # torch.save reports that what it has written is shorter than it should be.
    signs = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing", "unexpected pos ")
    return any(sign in str(error) for sign in signs)


def record_cause(cause: str) -> None:
    """Write the cause where `torchrun` looks for it, if it started this process. The first cause is kept."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if name and not Path(name).exists():
        # The launcher's table shows what it takes for a traceback.
        extra = {"py_callstack": cause, "timestamp": str(int(time.time()))}
        Path(name).write_text(json.dumps({"message": {"message": cause, "extraInfo": extra}}))
