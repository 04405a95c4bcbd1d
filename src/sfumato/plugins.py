"""Load a user's own code by path, `path/to/file.py:name`: rewards, objectives and families."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from sfumato.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name has the form `path/to/file.py:name`."""
    return name.rpartition(":")[0].endswith(".py")


def load_object(field: str, name: str) -> Any:
    """Run a Python file and return the function or class that `path/to/file.py:name` names.

    Args:
        field: setting that the name comes from, for error messages.
        name: path of the file and name of a function or class in it.

    Raises:
        UserError: the file is missing, cannot be imported, or does not define a callable of that name.
    """
    file, _, member = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{field}: {path} is not a file; give path/to/file.py:name")
    spec = importlib.util.spec_from_file_location(f"sfumato.plugins.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code may raise anything; the cause is kept
        raise UserError(f"{field}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    target = getattr(module, member, None)
    if not callable(target):
        own = [n for n, f in inspect.getmembers(module, callable) if getattr(f, "__module__", "") == module.__name__]
        raise UserError(f"{field}: {path} has no function or class {member!r}; it has {', '.join(own) or 'none'}")
    return target
