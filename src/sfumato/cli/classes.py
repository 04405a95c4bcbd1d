"""`sfumato classes MODEL`."""

from collections.abc import Callable
from dataclasses import dataclass

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Classes:
    """List the numbers and names of a model's classes."""

    model: tyro.conf.Positional[str]
    """bundled or released model (emoji-var, var-d16, ...), or run or checkpoint folder"""

    def __call__(self) -> int:
        from sfumato.families import read_card

        names = read_card(self.model).class_names
        if not names:
            raise UserError(f"model: {self.model} reads captions and has no classes; use captions (--prompts) instead")
        for number, name in enumerate(names):
            Console(markup=False).print(f"{number:4d}  {name}", highlight=False)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato classes`."""
    return parse_options(Classes, "classes", arguments)
