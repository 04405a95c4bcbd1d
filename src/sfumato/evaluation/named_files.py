"""The files that a suite's options name. If one of them changes, a saved evaluation no longer applies.

Only options that are meant as files count: paths, and options whose field has metadata that derives files from the
value. A folder `emoji` in the working directory is unrelated to `--extractor emoji`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sfumato.data.prompts import find_prompts
from sfumato.files import state
from sfumato.plugins import is_path
from sfumato.rewards.names import files_of_reward
from sfumato.text.encoders import WordVectors


def naming_files(files: Callable[[str], Sequence[str]]) -> dict[str, Callable[[str], Sequence[str]]]:
    """Return metadata for a field; `files` returns the files that its value, or each of its values, names."""
    return {"files": files}


FILE = naming_files(lambda name: [name])
"""Metadata of an option that is a file or folder, or a name on the hub."""
PROMPTS = naming_files(lambda name: [name] if find_prompts(name) == Path(name) else [])
"""Metadata of an option that is a prompt file, or the name of a bundled one."""
TEXT_ENCODER = naming_files(lambda name: [] if name == WordVectors.name else [name])
"""Metadata of an option that is a text encoder."""
VQA = naming_files(lambda name: [name.rpartition(":")[0] if is_path(name) else name])
"""Metadata of an option that is a model that answers questions: a hub id or folder, or `path/to/file.py:function`."""
REWARDS = naming_files(files_of_reward)
"""Metadata of an option that is a list of rewards."""


def named_files(suite: Any, out: Path) -> dict[str, str]:
    """Return the existing files and folders that a suite's options name, each with a text that changes when it does.

    The output folder and the folders that contain it are left out.
    """
    names = [name for name in names_in(suite) if name and os.path.exists(name)]
    return {name: state(Path(name)) for name in names if not out.resolve().is_relative_to(Path(name).resolve())}


def names_in(options: Any) -> Iterator[str]:
    """Yield the files that the fields of a dataclass name, whether they exist or not."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from names_in(value)
        elif isinstance(value, Path):
            yield str(value)
        elif "files" in field.metadata and value is not None:
            for part in (value,) if isinstance(value, str) else value:
                yield from field.metadata["files"](part)
