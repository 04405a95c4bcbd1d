"""The error for bad input. Any other exception is a bug."""

import difflib
import re
from collections.abc import Iterable

MANY = 12
"""Number of names that an error lists at most."""


class UserError(ValueError):
    """Bad input, described in one line that states the field, its value and the remedy.

    The command line prints it and exits with status 2. Any other exception is a bug and shows its traceback.
    """

    @property
    def field(self) -> str:
        """Name of the setting or argument at fault: the first word of the message."""
        match = re.match(r"[\w.-]+", str(self))
        return match[0] if match else ""


class SharedError(UserError):
    """Bad input for which all processes of a run stop together, at the same place and with the same message."""


def alternatives(name: str, known: Iterable[str]) -> str:
    """Return what to give instead of an unknown name: similar names, or else the first of the known ones."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    return f"give one of {', '.join(known[:MANY])}" + (f", ... ({len(known)} in all)" if len(known) > MANY else "")
