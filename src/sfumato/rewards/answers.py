"""Extract numbers from the answers of language models, which often are not exactly the requested JSON."""

import json
import math
import re
from typing import Any

WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
NUMBER = r"-?\d+(?:\.\d+)?|-?\.\d+"


def find_number(answer: str, key: str, lowest: float, highest: float) -> float:
    """Return the number under `key` in an answer; NaN if there is none or it is out of range.

    Code fences, prose around the object, comments, trailing commas, single quotes, Python's True, numbers as text,
    "4/5" and "4 out of 5" are accepted. If several objects have the key, the last one counts. If the value is an object
    of numbers, the result is their sum.
    """
    result = math.nan
    for value in _values(answer, key):
        number = _as_number(value)
        if not math.isnan(number):
            result = number
    return result if lowest <= result <= highest else math.nan


def _values(answer: str, key: str) -> list[Any]:
    """Return what follows each occurrence of the key, parsed as JSON if it is JSON, otherwise as text."""
    decoder, values = json.JSONDecoder(), []
    for match in re.finditer(rf"[\"'*]*\b{re.escape(key)}\b[\"'*]*\s*[:=]\s*", answer, re.IGNORECASE):
        rest = answer[match.end() :].lstrip("*` \n")
        try:
            values.append(decoder.raw_decode(rest)[0])
        except (ValueError, RecursionError):
            values.append(rest)
    return values


def _as_number(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 1e300 else math.nan
    if isinstance(value, dict):
        numbers = [_as_number(part) for part in value.values()]
        return sum(numbers) if numbers else math.nan
    if isinstance(value, str):
        text = value.lstrip(" \"'([").lower()
        word = re.match(r"[a-z]+", text)
        number = re.match(NUMBER, text)
        if word:
            return WORDS.get(word[0], math.nan)
        return float(number[0]) if number else math.nan
    return math.nan
