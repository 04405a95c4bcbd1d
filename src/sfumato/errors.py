"""The one error for bad input. Any other exception is a bug."""

import re


class UserError(ValueError):
    """Bad input: one line that names the field, its value and the remedy.

    The command prints it and exits with status 2; everything else is a bug and shows its traceback.
    """

    @property
    def field(self) -> str:
        """The setting or argument at fault: the first word of the message."""
        match = re.match(r"[\w.-]+", str(self))
        return match[0] if match else ""
