"""Typed options of a command, from its dataclass, with one-line errors instead of tyro's boxes."""

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sfumato.errors import UserError

CONSTRUCTORS = ConstructorRegistry()
T = TypeVar("T")


@CONSTRUCTORS.primitive_rule
def named_weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Parse rewards as names and weights, which replace the recipe's; tyro would only allow the recipe's own names."""
    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME WEIGHT ...",
        instance_from_str=parse_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [str(part) for pair in weights.items() for part in pair],
    )


@CONSTRUCTORS.primitive_rule
def paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Parse paths; an empty one, which would be the current folder, is refused."""
    if info.type != Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda arguments: parse_path(*arguments),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def parse_path(argument: str) -> Path:
    """Return the path; the error for an empty one becomes one of the option."""
    if not argument:
        raise ValueError("the path is empty; give one, or . for the current folder")
    return Path(argument)


def parse_pairs(arguments: list[str]) -> dict[str, float]:
    """Return names and weights; the error for anything else becomes one of the option."""
    if len(arguments) % 2:
        raise ValueError(f"{' '.join(arguments)} are not pairs of a name and a weight")
    return {name: float(weight) for name, weight in zip(arguments[::2], arguments[1::2], strict=True)}


def parse_options(
    command: type[T],
    name: str,
    arguments: list[str],
    defaults: T | None = None,
    synonyms: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Parse the options of a command or of settings, with help from their docstrings.

    Args:
        command: a dataclass; the instances of a command can be called.
        name: name of the command as the user types it.
        arguments: the arguments after the name.
        defaults: an instance with the default values; the class's own defaults if not given.
        synonyms: what to suggest for options of other programs, both without --.

    Raises:
        UserError: an option is unknown, missing or malformed.
    """
    default = tyro.MISSING_NONPROP if defaults is None else defaults
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), CONSTRUCTORS:
            return tyro.cli(  # pyright: ignore[reportReturnType]
                command, prog=f"sfumato {name}", args=arguments, default=default, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as error:
        if not error.code:  # help was requested and has been printed
            raise
        problem, suggestions = read_complaint(complaint.getvalue())
        if unknown := re.match(r"Unrecognized options: --([\w.-]+)", problem):
            other = synonyms.get(unknown[1].replace("_", "-"))
            suggestions = [f"--{other}"] if other else suggestions
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions and "nrecognized" in problem else ""
        raise UserError(f"{problem}{hint}; see sfumato {name} --help") from None


def read_complaint(box: str) -> tuple[str, list[str]]:
    """Return the text of the first section of tyro's box, and the options that later sections name.

    If the output is not Unicode, the box has no sides, and its lines are hyphens. An error from a settings class
    already names its field.
    """
    sections: list[list[str]] = [[]]
    for line in (line.strip(" │") for line in box.splitlines()[1:]):
        if line.strip("─-╰╯"):
            sections[-1].append(line)
        elif sections[-1]:
            sections.append([])
    problem, *rest = sections
    suggestions = [line.split()[0].rstrip(",") for section in rest for line in section if line.startswith("--")]
    return re.sub(r"^Error parsing [A-Za-z]\S*: ", "", " ".join(problem)).rstrip("."), suggestions[:3]


def take_option(name: str, default: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Return the value of `--name VALUE` or `--name=VALUE`, and the other arguments.

    Raises:
        UserError: the value is empty.
    """
    value, rest = default, list(arguments)
    for position, argument in enumerate(arguments):
        if argument == f"--{name}" and position + 1 < len(arguments):
            value, rest = arguments[position + 1], [*arguments[:position], *arguments[position + 2 :]]
        elif argument.startswith(f"--{name}="):
            value, rest = argument.removeprefix(f"--{name}="), [*arguments[:position], *arguments[position + 1 :]]
    if not value and rest != arguments:
        raise UserError(f"{name}: it is empty; give a value after --{name}, or omit the option")
    return value, rest


def renamed(arguments: list[str], names: Mapping[str, str]) -> list[str]:
    """Replace options of version 0.1 with their new names, with a note on standard error.

    Args:
        arguments: arguments of a command.
        names: new options by old option, both without --; a name that ends in a dot is a prefix of options.
    """
    result = []
    for argument in arguments:
        option, separator, value = argument.removeprefix("--").partition("=")
        option = option.replace("_", "-")
        for old, new in names.items() if argument.startswith("--") else ():
            if option == old or (old.endswith(".") and option.startswith(old)):
                argument = f"--{new}{option.removeprefix(old)}{separator}{value}"
                print(f"sfumato: --{option} is now {argument.partition('=')[0]}", file=sys.stderr)  # noqa: T201
                break
        result.append(argument)
    return result


def run_dir_of(recipe: str) -> str:
    """Return the default run folder of a recipe."""
    return f"runs/{recipe}"
