"""Extract numbers from the answers of language models, which often are not exactly the requested JSON."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
UNCERTAIN = re.compile(r"[ \t]*(?:%|percent|[-–—~][ \t]*\d|(?:to|or|and)[ \t]+\d)|[.,:]?\d")
"""What makes the number before it unclear: a percentage, a range, a decimal comma, a version, a time."""
DIVISOR = re.compile(r"[ \t]*(?:/|out of|of)[ \t]*(\d+(?:\.\d+)?)")
CLOSING = {'"': '"', "“": "“”", "”": "“”", "„": "“”", "'": "'", "‘": "‘’", "’": "‘’", "`": "`"}
"""Quotation marks, each with those that can close it."""


def find_number(answer: str, key: str, lowest: float, highest: float) -> float:
    """Return the number under `key` in an answer; NaN if there is none, it is unclear, or it is out of range.

    An object in braces comes before prose, which may discuss other numbers. Code fences, comments, trailing commas,
    single, curly and escaped quotes, missing quotes, Python's True, a list of one number, numbers as text, and a
    fraction of `highest` such as "4/5" or "4 out of 5" are accepted. If several objects have the key, the last one
    counts. If the value is an object of numbers, the result is their sum.
    """
    for text in (answer, answer.replace('\\"', '"')):
        values = [value for held in _objects(text) for name, value in _items(held) if _same(name, key)]
        if values:
            return _in_range(_as_number(values[-1], highest), lowest, highest)
    numbers = [_as_number(value, highest) for value in _prose_values(answer, key)]
    known = [number for number in numbers if not math.isnan(number)]
    return _in_range(known[-1], lowest, highest) if known else math.nan


def _in_range(number: float, lowest: float, highest: float) -> float:
    return number if lowest <= number <= highest else math.nan


def _same(name: str, key: str) -> bool:
    return name.strip(" *_`").lower() == key.lower()


def _items(held: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of an object and of those in it, in the order of the text."""
    for name, value in held.items() if isinstance(held, dict) else ():
        yield name, value
        yield from _items(value)
    for item in held if isinstance(held, list) else ():
        yield from _items(item)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in a text, read as JSON if they are JSON, otherwise leniently."""
    start = text.find("{")
    while start >= 0:
        try:
            held, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            reader = _Reader(text, start)
            held, end = reader.value(), reader.at
        yield held
        start = text.find("{", end)


class _Reader:
    """Reads a value that is almost JSON, up to its end or that of the text. Bare words and numbers stay text."""

    DEEPEST = 50

    def __init__(self, text: str, at: int):
        self.text, self.at, self.depth = text, at, 0

    def value(self) -> Any:
        self._skip()
        mark = self.text[self.at : self.at + 1]
        if mark in ("{", "[") and self.depth < self.DEEPEST:
            self.depth += 1
            held = self._object() if mark == "{" else self._list()
            self.depth -= 1
            return held
        return self._quoted() if mark in CLOSING and mark else self._bare(r",(?=\d)|[^,}\]\n]")

    def _object(self) -> dict[str, Any]:
        held, self.at = {}, self.at + 1
        while not self._closed("}"):
            begin = self.at
            name = self._quoted() if self.text[self.at] in CLOSING else self._bare(r"[^:=,{}\[\]\n\"“”]")
            self._skip()
            if self.text[self.at : self.at + 1] in (":", "="):
                self.at += 1
                held[name] = self.value()
            self.at += self.at == begin  # what cannot be read is skipped
        return held

    def _list(self) -> list[Any]:
        held, self.at = [], self.at + 1
        while not self._closed("]"):
            begin = self.at
            held.append(self.value())
            self.at += self.at == begin
        return held

    def _closed(self, mark: str) -> bool:
        self._skip(",")
        if self.text[self.at : self.at + 1] == mark:
            self.at += 1
            return True
        return self.at >= len(self.text)

    def _quoted(self) -> str:
        """Read a quoted text. A quotation mark ends it only where something can follow, because some are apostrophes or
        were not escaped."""
        marks = "".join(CLOSING[self.text[self.at]])
        match = re.compile(rf"((?:\\.|(?![{marks}]\s*(?:[,:=\]}}#/]|$)).)*)[{marks}]?", re.DOTALL).match(
            self.text, self.at + 1
        )
        assert match is not None
        self.at = match.end()
        return match[1]

    def _bare(self, allowed: str) -> str:
        match = re.compile(rf"(?:(?!//|\#|/\*)(?:{allowed}))*").match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return match[0].strip()

    def _skip(self, others: str = "") -> None:
        """Skip white space, comments, and these characters."""
        match = re.compile(rf"(?:[\s{others}]|//[^\n]*|\#[^\n]*|/\*.*?\*/)*", re.DOTALL).match(self.text, self.at)
        assert match is not None
        self.at = match.end()


def _prose_values(answer: str, key: str) -> Iterator[Any]:
    """Yield what follows each occurrence of the key and a colon."""
    marks = "\"'*`“”‘’"
    for match in re.finditer(rf"\b{re.escape(key)}\b[{marks}]*\s*[:=]\s*", answer, re.IGNORECASE):
        rest = answer[match.end() :].lstrip("*` \n")
        yield _Reader(rest, 0).value() if rest.startswith(("{", "[")) else rest


def _as_number(value: Any, highest: float | None) -> float:
    """Return the number that a value stands for; NaN if it is none. A fraction must be one of `highest`, if given."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 1e300 else math.nan
    if isinstance(value, dict):
        numbers = [_as_number(part, None) for part in value.values()]
        return sum(numbers) if numbers else math.nan
    if isinstance(value, list) and len(value) == 1:
        return _as_number(value[0], highest)
    if isinstance(value, str):
        text = value.lstrip(" \"'“”‘’([*").lower()
        word = re.match(r"([a-z]+)(?=\s*(?:[^\w\s]|$))", text)  # not "no idea"
        if word:
            return WORDS.get(word[1], math.nan)
        number = NUMBER.match(text)
        if number is None or UNCERTAIN.match(text, number.end()):
            return math.nan
        divisor = DIVISOR.match(text, number.end())
        if divisor is not None and highest is not None and float(divisor[1]) != highest:
            return math.nan
        return float(number[0])
    return math.nan
