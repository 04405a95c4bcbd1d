"""Notes for people that are not errors: what was taken, and what was left out."""

import os
import sys


def note(text: str) -> None:
    """Print a line on the standard error output, once in a run of several processes."""
    if os.environ.get("RANK", "0") == "0":
        line = f"sfumato: {text}".encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
        print(line, file=sys.stderr, flush=True)  # noqa: T201
