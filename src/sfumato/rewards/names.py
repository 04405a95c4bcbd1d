"""Rewards by name, by file or by address, with options: `clip?prompt=a painting&scale=5`."""

import dataclasses
import difflib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from sfumato.errors import UserError
from sfumato.rewards.base import Part, Reward

Maker = Callable[..., Any]
"""A reward, or a class of rewards whose arguments are the options"""

PART_OPTIONS = ("scale", "offset", "levels", "thresholds")
"""options of every reward, those of `Part`"""


def build_part(name: str, weight: float, known: Mapping[str, Maker]) -> Part:
    """A reward by name and options, as a part of a sum.

    Args:
        name: `NAME`, `path/to/file.py:function` or `http://...`, then `?option=value&option=value`; %26 is an &.

    Raises:
        UserError: there is no such reward or option, or a value is not what the option wants.
    """
    base, _, query = name.partition("?")
    options = split_options(name, query)
    hints = get_type_hints(Part)
    own = {option: text for option, text in options.items() if option not in PART_OPTIONS}
    common = {
        option: convert(f"reward {name!r}: {option}", text, hints[option])
        for option, text in options.items()
        if option in PART_OPTIONS
    }
    try:
        return Part(reward=build_reward(name, base, own, known), weight=weight, **common)
    except ValueError as error:
        raise UserError(str(error) if str(error).startswith("reward") else f"reward {name!r}: {error}") from error


def split_options(name: str, query: str) -> dict[str, str]:
    """`a=1&b=2` as a dictionary."""
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        option, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"reward {name!r}: option {item!r} has no value; write {item}=VALUE")
        if option in options:
            raise UserError(f"reward {name!r}: option {option!r} is given twice; give it once")
        options[option] = unquote(text)
    return options


def build_reward(name: str, base: str, options: Mapping[str, str], known: Mapping[str, Maker]) -> Reward:
    """The reward called `base`, made with these options.

    Raises:
        UserError: there is none, or an option is unknown, malformed or missing.
    """
    found = find(base, known)
    if base.startswith(("http://", "https://")):
        options = {**options, "url": base}
    if not inspect.isclass(found):
        if options:
            raise UserError(
                f"reward {name!r}: there is no option {next(iter(options))!r}; {base} takes {', '.join(PART_OPTIONS)}"
            )
        return found
    hints = get_type_hints(found.__init__ if not dataclasses.is_dataclass(found) else found)
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name in hints]
    names = [p.name for p in parameters]
    for option in options:
        if option not in names:
            close = difflib.get_close_matches(option, [*names, *PART_OPTIONS], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join([*names, *PART_OPTIONS])}"
            raise UserError(f"reward {name!r}: there is no option {option!r}; {hint}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise UserError(f"reward {name!r}: {missing[0]} is not given; write {base}?{missing[0]}=VALUE")
    return cast(Reward, found(**{o: convert(f"reward {name!r}: {o}", text, hints[o]) for o, text in options.items()}))


def convert(what: str, text: str, kind: Any) -> Any:
    """Text as a str, int, float, bool, one of some literals, or a tuple of these; None for an empty optional.

    Raises:
        UserError: it is none; `what` names the option.
    """
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return convert(what, text, next(a for a in arguments if a is not type(None))) if text else None
    if get_origin(kind) is tuple:
        return tuple(convert(what, item.strip(), arguments[0]) for item in text.split(",") if item.strip())
    if get_origin(kind) is Literal or kind is bool:
        choices = arguments or ("true", "false")
        if text not in choices:
            raise UserError(f"{what}: {text!r} is not one of {', '.join(choices)}; give one of these")
        return text == "true" if kind is bool else text
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{what}: {text!r} is not of type {kind.__name__}; give one that is") from None


def find(name: str, known: Mapping[str, Maker]) -> Maker:
    """A reward by name, or a user's function or class as `path/to/file.py:function`.

    Raises:
        UserError: there is none.
    """
    if name in known:
        return known[name]
    if name.startswith(("http://", "https://")):
        return known["http"]
    file, separator, function = name.rpartition(":")
    if not separator or not file.endswith(".py"):
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(
            f"reward: there is no {name!r}; {hint}give one of {', '.join(known)}, or path/to/file.py:function"
        )
    path = Path(file)
    if not path.is_file():
        raise UserError(f"reward: {path} is not a file; give path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"sfumato.user_rewards.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code may fail in any way; the cause is kept
        raise UserError(f"reward: {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        functions = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        raise UserError(f"reward: {path} has no function {function!r}; it has {', '.join(functions) or 'none'}")
    return found
