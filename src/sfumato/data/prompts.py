"""Captions as conditions: read files of prompts, and choose the prompts of a training run."""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch

from sfumato.data.classes import pick, spread
from sfumato.errors import UserError
from sfumato.request import Words

CAPTION_KEYS = ("caption", "prompt", "text", "prompts")
"""Possible keys or columns of the caption, in any case; the first one that is present is used. "Prompts" is
DrawBench's."""


@dataclass(frozen=True)
class Prompt:
    """A caption, and other data about it from its source, for rewards that need more than the caption."""

    caption: str
    """text that the image should show"""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """the other keys of a line, or columns of a row"""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read the prompts in a file, in order and including duplicates.

    - `.txt`: one caption per line; blank lines and lines that start with # are skipped.
    - `.jsonl`: one object per line, with its caption under "caption", "prompt" or "text"; or one string per line.
    - `.json`: a list of such objects or strings, or COCO's {"annotations": [objects]}.
    - `.csv`: a table with a column of one of these names, or "Prompts" as in DrawBench; separated by commas, or by
      semicolons or tabs if the header has no comma.
    - `.tsv`: such a table, separated by tabs.

    Names of keys and columns may be in any case. All other keys and columns become the prompt's metadata. Whitespace
    within a caption is reduced to single spaces.

    Raises:
        UserError: the file is missing, of an unknown type or malformed, or has no captions or an empty one; the message
            states the file, the line (in a `.json` file, the item) and the remedy.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises an error if the name is too long
        raise UserError(f"prompts: {path} is not a file; give a file that ends in {', '.join(READERS)}")
    if path.suffix.lower() not in READERS:
        raise UserError(f"prompts: {path} has an unknown type; give a file that ends in {', '.join(READERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"prompts: {path}, line {line}: this is not valid UTF-8; save the file as UTF-8") from error
    prompts = [_prompt(item, f"prompts: {path}, {place}") for place, item in READERS[path.suffix.lower()](path, text)]
    if not prompts:
        raise UserError(f"prompts: {path} has no captions; write at least one")
    return prompts


def find_prompts(name: str) -> Path:
    """Return the path of a prompt file, given by path or by the name of a bundled one ("emoji-captions")."""
    folder = Path(str(resources.files("sfumato") / "bundled/prompts"))
    bundled = {file.stem: file for file in folder.glob("*.jsonl")}
    return bundled.get(name, Path(name))


def looks_like_file(text: str) -> bool:
    """Return whether a text is a path rather than a caption: one word with a folder or the extension of a text file."""
    ending = re.search(r"\.([A-Za-z]{1,5})$", text)
    known = [suffix.removeprefix(".") for suffix in READERS]
    close = ending is not None and difflib.get_close_matches(ending[1].lower(), known, cutoff=0.6) != []
    return not re.search(r"\s", text) and ("/" in text or "\\" in text or close)


def prompt_words(prompts: Sequence[Prompt]) -> Words:
    """Return words for these captions."""
    return Words(names=tuple(p.caption for p in prompts), metadata=tuple(p.metadata for p in prompts))


class PromptSampler:
    """Draws prompts uniformly, without repeats within a batch if there are enough."""

    def __init__(self, prompts: Sequence[Prompt]):
        """Create a sampler.

        Args:
            prompts: prompts to draw from, at least one.

        Raises:
            UserError: the list of prompts is empty.
        """
        if not prompts:
            raise UserError("prompts: the list is empty; give at least one prompt")
        self.prompts = prompts

    def next(self, count: int, rng: torch.Generator) -> Words:
        """Choose `count` prompts at random, without repeats if there are enough."""
        return prompt_words([self.prompts[i] for i in pick(len(self.prompts), count, rng)])

    def spread(self, count: int) -> Words:
        """Choose `count` prompts at even intervals over the file."""
        return prompt_words([self.prompts[i] for i in spread(len(self.prompts), count)])


_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}
Items = Iterator[tuple[str, object]]
"""Raw prompts of a file, as pairs of a position ("line 3") and a string or object."""


def _read_txt(path: Path, text: str) -> Items:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"line {number}", line


def _read_jsonl(path: Path, text: str) -> Items:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    f"prompts: {path}, line {number}: this is not valid JSON ({error}); write one object per line"
                ) from error


def _read_json(path: Path, text: str) -> Items:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"prompts: {path}, line {line}: this is not valid JSON ({error}); fix it") from error
    items = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f'prompts: {path} has no list of captions; give a list, or {{"annotations": [...]}}')
    for number, item in enumerate(items, start=1):
        yield f"item {number}", item


def _read_csv(path: Path, text: str) -> Items:
    first = text.partition("\n")[0]
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    separator = next((mark for mark in separators if mark in first), ",")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        header = [name.strip() for name in next(rows, [])]
        if not set(CAPTION_KEYS) & {name.lower() for name in header}:
            raise UserError(f"prompts: {path}, line 1: no column is named {_either(CAPTION_KEYS)}; add a header")
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"prompts: {path}, line 1: two columns are named {twice!r}; rename one")
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"prompts: {path}, line {rows.line_num}: {len(row)} columns, but the header has {len(header)}; "
                    f"put captions that contain {_MARKS[separator]} in double quotes"
                )
            if row:
                yield f"line {rows.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"prompts: {path}, line {rows.line_num}: this is not valid CSV ({error}); fix its quotes"
        ) from error


READERS: Mapping[str, Callable[[Path, str], Items]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
"""Functions that read prompt files, by file extension."""


def _prompt(item: object, place: str) -> Prompt:
    """Convert a string or an object to a prompt; error messages begin with `place`."""
    metadata: dict[str, object] = {}
    caption: object = item
    if isinstance(item, Mapping):
        metadata = {str(key): value for key, value in item.items()}
        key = next((key for known in CAPTION_KEYS for key in metadata if key.lower() == known), None)
        if key is None:
            raise UserError(f"{place}: the caption is missing; put it under {_either(CAPTION_KEYS)}")
        caption = metadata.pop(key)
    if not isinstance(caption, str):
        raise UserError(f"{place}: the caption is {json.dumps(caption)[:40]}; write a string")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise UserError(f"{place}: the caption contains half a character (a lone surrogate); write the whole character")
    if not caption.strip():
        raise UserError(f"{place}: the caption is empty; write one or remove the line")
    return Prompt(" ".join(caption.split()), metadata)


def _either(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
