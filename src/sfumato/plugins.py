"""Load a user's own code by path, `path/to/file.py:name`: rewards, objectives and families."""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from sfumato.errors import UserError

PREFIX = "sfumato.plugins."
"""What the names of the modules of users' files begin with."""


def is_path(name: str) -> bool:
    """Whether a name has the form `path/to/file.py:name`."""
    return name.rpartition(":")[0].endswith(".py")


def split_name(name: str) -> tuple[str, str]:
    """Split `NAME?options` into the name and the options. The folders of a path may contain a question mark."""
    own = re.fullmatch(r"([^=]+?\.py:[^?]*)\??(.*)", name, re.DOTALL)  # a = before the path belongs to an option
    if own:
        return own[1], own[2]
    base, _, query = name.partition("?")
    return base, query


def load_object(field: str, name: str) -> Any:
    """Run a Python file and return the function or class that `path/to/file.py:name` names.

    The file can import its neighbors: its folder is added to the end of `sys.path`.

    Args:
        field: setting that the name comes from, for error messages.
        name: path of the file and name of a function or class in it.

    Raises:
        UserError: the file is missing, cannot be imported, or does not define a callable of that name.
    """
    file, _, member = name.rpartition(":")
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        raise UserError(f"{field}: {path} is not a file; give path/to/file.py:name")
    # Files of the same name in two folders are two modules.
    digest = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{PREFIX}{path.stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module here
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that no file there hides an installed package
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's code may raise anything; the cause is kept
        raise UserError(f"{field}: {path} cannot be imported: {describe(error)}") from error
    target = getattr(module, member, None)
    if not callable(target):
        own = [n for n, f in inspect.getmembers(module, callable) if getattr(f, "__module__", "") == module.__name__]
        raise UserError(f"{field}: {path} has no function or class {member!r}; it has {', '.join(own) or 'none'}")
    return target


def describe(error: BaseException) -> str:
    """Return one line with the type and the message of an error, and the line of the user's file that it came from, if
    it came from one."""
    if isinstance(error, SyntaxError):
        message, file, line = error.msg, error.filename, error.lineno
        if "codec can't decode" in message:
            message += "; save the file as UTF-8, or name its encoding in the first line"
    else:
        message, file, line = str(error), None, None
        for frame, number in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").startswith(PREFIX):
                file, line = frame.f_code.co_filename, number
    place = f" ({Path(file).name}, line {line})" if file and line else ""
    return f"{type(error).__name__}: {' '.join(message.split())}{place}"
