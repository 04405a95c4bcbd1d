"""Build rewards from a name, file or address with options, as in `clip?prompt=a painting&scale=5`."""

import dataclasses
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from sfumato.errors import UserError, alternatives
from sfumato.plugins import describe, is_path, load_object, split_name
from sfumato.rewards.base import Part, Reward
from sfumato.rewards.groups import GroupReward, with_features

Maker = Callable[..., Any]
"""A reward, or a class of rewards whose arguments are the options."""

PART_OPTIONS = ("scale", "offset", "levels", "thresholds")
"""Options that every reward takes; they are those of `Part`."""
FILE_OPTIONS = ("weights", "model", "tokenizer", "base", "head", "reference", "detector", "clip")
"""Options of this package's rewards whose values can be files or folders."""


def build_part(name: str, weight: float, known: Mapping[str, Maker]) -> Part:
    """Build a reward from its name and options, as a part of a sum.

    Args:
        name: `NAME`, `path/to/file.py:function` or `http://...` (one or several, separated by commas), then
            `?option=value&option=value`; %26 is an &.
        weight: weight of the part in the sum.
        known: built-in rewards by name.

    Raises:
        UserError: the reward or an option does not exist, or a value has the wrong type.
    """
    base, query = split_name(name)
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
        named = str(error).startswith(("reward ", "reward:"))
        raise UserError(str(error) if named else f"reward {name!r}: {error}") from error


def split_options(name: str, query: str) -> dict[str, str]:
    """Parse `a=1&b=2` into a dictionary."""
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        option, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"reward {name!r}: option {item!r} has no value; write {item}=VALUE")
        if option in options:
            raise UserError(f"reward {name!r}: option {option!r} is given twice; give it once")
        options[option] = unquote(text)
    return options


def files_of_reward(name: str) -> list[str]:
    """Return the files and folders that a reward's name refers to, whether they exist or not: a user's own code, and
    the values of options.

    Raises:
        UserError: an option is malformed.
    """
    base, query = split_name(name)
    code = [base.rpartition(":")[0]] if is_path(base) else []
    wanted = {option: text for option, text in split_options(name, query).items() if option not in PART_OPTIONS}
    values = [text for option, text in wanted.items() if code or option.rpartition(".")[2] in FILE_OPTIONS]
    return [os.path.expanduser(file) for file in code + values]


def build_reward(name: str, base: str, options: Mapping[str, str], known: Mapping[str, Maker]) -> Reward | GroupReward:
    """Build the reward named `base` with these options.

    Raises:
        UserError: the reward does not exist, or an option is unknown, malformed or missing.
    """
    maker = find(base, known)
    if base.startswith(("http://", "https://")):
        options = {**options, "url": base}
    if not inspect.isclass(maker):
        if options:
            raise UserError(
                f"reward {name!r}: unknown option {next(iter(options))!r}; {base} takes {', '.join(PART_OPTIONS)}"
            )
        return with_features(maker)
    try:
        return _construct(name, base, maker, options)
    except (Exception, SystemExit) as error:
        if not is_path(base) or (isinstance(error, UserError) and str(error).startswith("reward ")):
            raise
        # A user's code may raise anything; the cause is kept.
        raise UserError(f"reward {name!r}: it cannot be constructed: {describe(error)}") from error


def _construct(name: str, base: str, maker: type, options: Mapping[str, str]) -> Reward | GroupReward:
    signature = inspect.signature(maker).parameters.values()
    hints = _hints(maker)
    parameters = [p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in parameters]
    for option in options:
        if option not in names:
            hint = alternatives(option, [*names, *PART_OPTIONS])
            raise UserError(f"reward {name!r}: unknown option {option!r}; {hint}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise UserError(f"reward {name!r}: {missing[0]} is missing; write {base}?{missing[0]}=VALUE")
    kinds = {p.name: hints.get(p.name, _kind_of(p.default)) for p in parameters}
    reward = maker(**{o: convert(f"reward {name!r}: {o}", text, kinds[o]) for o, text in options.items()})
    if not callable(reward) and not callable(getattr(reward, "scores", None)):
        raise UserError(f"reward {name!r}: {maker.__name__} has no __call__; add __call__(self, images, words)")
    return with_features(reward)


def _hints(maker: type) -> dict[str, Any]:
    """Return the type hints of a class's options. One that cannot be evaluated is left out, such as a name that is
    imported for type checkers only."""
    annotated = maker if dataclasses.is_dataclass(maker) else maker.__init__
    try:
        return get_type_hints(annotated)
    except Exception:  # each is evaluated alone below
        hints = {}
        for name, parameter in inspect.signature(maker).parameters.items():
            alone = types.SimpleNamespace(__annotations__={name: parameter.annotation})
            with suppress(Exception):
                hints |= get_type_hints(alone, globalns=sys.modules[maker.__module__].__dict__)
        return {name: hint for name, hint in hints.items() if hint is not inspect.Parameter.empty}


def _kind_of(default: Any) -> type:
    """Return the type of an option without a type hint: that of its default, or text."""
    return type(default) if isinstance(default, bool | int | float) else str


def convert(what: str, text: str, kind: Any) -> Any:
    """Convert text to a str, int, float, bool, literal, or a tuple or list of these; an empty optional becomes None.

    Raises:
        UserError: the text does not have this type; the message begins with `what`, which names the option.
    """
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return convert(what, text, next(a for a in arguments if a is not type(None))) if text else None
    if kind is Any:
        return text
    if get_origin(kind) in (tuple, list):
        return get_origin(kind)(convert(what, item.strip(), arguments[0]) for item in text.split(",") if item.strip())
    if get_origin(kind) is Literal or kind is bool:
        choices = arguments or ("true", "false")
        if text not in choices:
            raise UserError(f"{what}: {text!r} is not one of {', '.join(choices)}; give one of these")
        return text == "true" if kind is bool else text
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{what}: {text!r} is not a value of type {kind.__name__}; give one that is") from None


def find(name: str, known: Mapping[str, Maker]) -> Maker:
    """Look up a reward by name, or load a user's function or class from `path/to/file.py:function`.

    Raises:
        UserError: there is no such reward.
    """
    if name in known:
        return known[name]
    if name.startswith(("http://", "https://")):
        return known["http"]
    if is_path(name):
        return load_object("reward", name)
    if re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?", name):
        raise UserError(f"reward: {name!r} has no http:// or https://; write http://{name} for a server")
    raise UserError(
        f"reward: unknown reward {name!r}; {alternatives(name, known)} (your own is path/to/file.py:function)"
    )
