"""The error for bad input. Any other exception is a bug."""

import re


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
