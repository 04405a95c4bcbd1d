"""Lists of names, and errors for unknown names. Nothing here loads what the names stand for."""

from collections.abc import Iterable, Mapping

from sfumato.errors import UserError, alternatives


def list_choices(usage: str, text: str, choices: Mapping[str, str]) -> None:
    """Print the usage, a line of text, and one line per choice."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(), Table.grid(padding=(0, 2))
    for name, line in choices.items():
        table.add_row(f"  [bold]{name}[/]", escape(line))
    console.print(f"usage: {usage}\n\n{text}\n", highlight=False, markup=False)
    console.print(table)


def check_known(field: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is known.

    Raises:
        UserError: the name is unknown; the message suggests similar names.
    """
    known = list(known)
    if name not in known:
        raise UserError(f"{field}: unknown {field} {name!r}; {alternatives(name, known)}")
