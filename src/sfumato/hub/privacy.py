"""Settings and commands as they may be published: without the folders, machines and users of the author."""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import unquote

START = r"(?<![^=&?,])"
"""Only at the start of a value, or of an option in the name of a reward."""
ADDRESS = re.compile(r"\b(https?)://[^\s?&,]+")
FOLDERS = re.compile(rf"{START}(?:~[^/]*|\.{{0,2}}|[A-Za-z]:)[/\\](?:[^=&?,]*[/\\])?")
"""Folders of a path that begins with /, ~, ., .. or a drive."""
DEEP = re.compile(rf"{START}[^=&?,/\\\s]+[/\\][^=&?,/\\]+[/\\](?:[^=&?,]*[/\\])?")
"""Two folders or more. One may be the owner of a model on the hub, as in openai/clip-vit-base-patch32."""
FILE = re.compile(rf"{START}[^=&?,/\\]+[/\\]([^=&?,/\\]+\.[A-Za-z]\w*(?:::?\w+)?)(?=$|[?&,])")
"""A file in a folder, also with the name of a function or of a part in it."""


def cleaned(value: str) -> str:
    """Return a setting, or the name of a reward with its options, without folders and addresses.

    A path becomes the name of the file or of the last folder; an address becomes http://HOST.
    """
    if "%2f" in value.lower():
        value = unquote(value)
    value = ADDRESS.sub(r"\1://HOST", value)
    return FILE.sub(r"\1", DEEP.sub("", FOLDERS.sub("", value)))


def cleaned_command(command: str) -> str:
    """Return a command line as a person would type it, `sfumato ...`, with each argument cleaned.

    Args:
        command: what `run.json` has: the interpreter, its options, the script and the arguments. If it does not contain
            `sfumato`, the result is empty.
    """
    words = shlex.split(command)
    names = [PurePath(word).name.removesuffix(".exe") for word in words]
    if "sfumato" not in names:
        return ""
    return shlex.join(["sfumato", *map(cleaned, words[names.index("sfumato") + 1 :])])


def cleaned_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as text; those that are not given are left out."""
    return {name: as_text(value) for name, value in settings.items() if value not in (None, "", [], {})}


def as_text(value: object) -> str:
    """Return a setting, which may be a list, as cleaned text."""
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else cleaned(str(value))
