"""Captions that a run asks for: files of prompts, and how a run picks from them."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch

from sfumato.data.classes import Encode, caption_conditions, pick, spread
from sfumato.errors import UserError
from sfumato.rollout import Conditions

CAPTION_KEYS = ("caption", "prompt", "text", "Prompts")
"""Where an object or a table has its caption: the first of these that it has; the last is DrawBench's."""


@dataclass(frozen=True)
class Prompt:
    """A caption, and what else its source says of it: for rewards that need more than the caption."""

    caption: str
    metadata: Mapping[str, object] = field(default_factory=dict)


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in its order; equal ones stay as often as they are there.

    - `.txt`: a caption a line; blank lines and lines that start with # are skipped.
    - `.jsonl`: an object a line, with its caption under "caption", "prompt" or "text"; or a string a line.
    - `.json`: a list of such objects or strings, or COCO's {"annotations": [objects]}.
    - `.csv`: a table whose header has such a column, or "Prompts" as DrawBench's.

    All other keys and columns are the prompt's metadata. White space within a caption is reduced to single spaces.

    Raises:
        UserError: the file is missing, of another kind or broken, or it has no captions or an empty one; the message
            names the file, the line (of a `.json` file: the item) and the remedy.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise UserError(f"prompts: {path} is not a file; give one of {', '.join(READERS)}")
    if path.suffix.lower() not in READERS:
        raise UserError(f"prompts: {path} is of no known kind; give a file that ends in {', '.join(READERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"prompts: {path}, line {line}: this is not UTF-8; save the file as UTF-8") from error
    prompts = [_prompt(item, f"prompts: {path}, {place}") for place, item in READERS[path.suffix.lower()](path, text)]
    if not prompts:
        raise UserError(f"prompts: {path} has no captions; write at least one")
    return prompts


def find_prompts(name: str) -> Path:
    """A file of prompts by path, or a bundled one by name ("emoji-captions")."""
    folder = Path(str(resources.files("sfumato") / "bundled/prompts"))
    bundled = {file.stem: file for file in folder.glob("*.jsonl")}
    return bundled.get(name, Path(name))


class PromptSampler:
    """Prompts drawn uniformly, with replacement between batches and none within.

    Only the captions of the batch at hand are read by the text encoder, each once.
    """

    def __init__(self, prompts: Sequence[Prompt], encode: Encode, longest: int | None = None):
        """Prompts to draw from.

        Args:
            prompts: at least one.
            encode: what reads captions, such as a `TextEncoder`'s `encode`.
            longest: text tokens that the generator takes of a caption; what is beyond is cut off.

        Raises:
            UserError: there are no prompts.
        """
        if not prompts:
            raise UserError("prompts: there are none to draw from; give at least one")
        self.prompts, self.encode, self.longest = prompts, encode, longest

    def next(self, count: int, rng: torch.Generator) -> Conditions:
        """`count` prompts, different ones as long as there are enough."""
        return self._conditions(pick(len(self.prompts), count, rng))

    def spread(self, count: int) -> Conditions:
        """`count` prompts spread evenly over the file."""
        return self._conditions(spread(len(self.prompts), count))

    def _conditions(self, positions: Sequence[int]) -> Conditions:
        chosen = [self.prompts[i] for i in positions]
        captions, metadata = [p.caption for p in chosen], [p.metadata for p in chosen]
        return caption_conditions(captions, self.encode, self.longest, metadata)


Items = Iterator[tuple[str, object]]
"""The prompts of a file as it has them, strings or objects, each after its place ("line 3")."""


def _read_txt(path: Path, text: str) -> Items:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"line {number}", line


def _read_jsonl(path: Path, text: str) -> Items:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"prompts: {path}, line {number}: this is no JSON ({error.msg}); write one object a line"
                ) from error


def _read_json(path: Path, text: str) -> Items:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"prompts: {path}, line {error.lineno}: this is no JSON ({error.msg}); mend it") from error
    items = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(items, list):
        raise UserError(f'prompts: {path} has no list of captions; give a list, or {{"annotations": [...]}}')
    for number, item in enumerate(items, start=1):
        yield f"item {number}", item


def _read_csv(path: Path, text: str) -> Items:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if not set(CAPTION_KEYS) & set(header):
            raise UserError(f"prompts: {path}, line 1: no column is called {_either(CAPTION_KEYS)}; add a header")
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"prompts: {path}, line 1: two columns are called {twice!r}; rename one")
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"prompts: {path}, line {rows.line_num}: {len(row)} columns where the header has {len(header)}; "
                    "put captions with commas in double quotes"
                )
            if row:
                yield f"line {rows.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"prompts: {path}, line {rows.line_num}: this is no CSV ({error}); mend its quotes") from error


READERS: Mapping[str, Callable[[Path, str], Items]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
"""How a file of prompts is read, by its suffix."""


def _prompt(item: object, place: str) -> Prompt:
    """A string or an object as a prompt; the place begins the error's message."""
    metadata: dict[str, object] = {}
    caption: object = item
    if isinstance(item, Mapping):
        metadata = {str(key): value for key, value in item.items()}
        key = next((key for key in CAPTION_KEYS if key in metadata), None)
        if key is None:
            raise UserError(f"{place}: there is no caption; put it under {_either(CAPTION_KEYS)}")
        caption = metadata.pop(key)
    if not isinstance(caption, str):
        raise UserError(f"{place}: the caption is {json.dumps(caption)[:40]}; write a string")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise UserError(f"{place}: the caption has half of a character (a lone surrogate); write it whole")
    if not caption.strip():
        raise UserError(f"{place}: the caption is empty; write one or remove the line")
    return Prompt(" ".join(caption.split()), metadata)


def _either(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
