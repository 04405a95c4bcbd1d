"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350): how an image is scored from answers and objects. The rules are
those of the authors' `BLIP_vqa.py`, `2D_spatial_eval.py` and `3_in_1.py`; they need no network."""

import itertools
import math
from collections.abc import Mapping, Sequence

from sfumato.evaluation.noun_phrases import Parsed
from sfumato.rewards.geneval_scoring import Detection

MOST_PHRASES = 8
"""Number of noun phrases that are asked about; later ones do not count."""
BESIDE = ("on side of", "next to", "near")
DIRECTIONS = {
    "on the left of": (1, 0),
    "on the right of": (-1, 0),
    "on the bottom of": (0, -1),
    "on the top of": (0, 1),
}
"""Where the second object lies, seen from the first: right, left, above, below."""
RELATIONS = (*BESIDE, *DIRECTIONS, "on top of")
"""Relations in the order in which a caption is searched. "on top of" is found, but earns nothing for the position."""
SPLITS = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
"""What separates the two objects of a complex caption."""
PEOPLE = ("girl", "boy", "man", "woman")
"""Nouns that are looked for as "person"."""
SIDE = 479
"""Shorter side in pixels to which the authors resize an image before its objects are found."""
CLOSE, OVERLAP = 150, 0.1
"""Largest distance in these pixels that is near, and intersection over union up to which a direction counts fully."""


def questions_of(parsed: Parsed) -> list[str]:
    """Return a question for each noun phrase, such as "a red car?"."""
    return [f"{phrase}?" for phrase in parsed.phrases[:MOST_PHRASES]]


def attributes(yes: Sequence[float]) -> float:
    """Return the score for attributes, 0 to 1: the product of the probabilities of yes; 1 without any."""
    return math.prod(yes)


def relation_of(caption: str) -> str | None:
    """Return the first relation of the list that a caption contains."""
    return next((relation for relation in RELATIONS if relation in caption), None)


def simple_objects(parsed: Parsed) -> tuple[str, str] | None:
    """Return the two objects of a caption of the task spatial: its first and its last noun; None if it has no noun."""
    nouns = [word for word, tag in zip(parsed.words, parsed.tags, strict=True) if tag == "NOUN"]
    return (_wanted(nouns[0]), _wanted(nouns[-1])) if nouns else None


def complex_objects(parsed: Parsed) -> tuple[str, str] | None:
    """Return the two objects of a caption of the task complex: the last noun before what separates them, and the first
    one after; None if there is no such pair, or more than one."""
    pairs = list(zip(parsed.words, parsed.tags, strict=True))
    found: list[str] = []
    for place in range(len(pairs)):
        length = next((n for n in (3, 2, 1) if " ".join(parsed.words[place : place + n]) in SPLITS), None)
        if length is not None:
            before = [word for word, tag in pairs[:place] if tag in ("NOUN", "PROPN")]
            after = [word for word, tag in pairs[place + length :] if tag == "NOUN"]
            after = after or [
                word
                for (word, tag), (_, following) in itertools.pairwise(pairs[place + length :])
                if tag == "PROPN" != following
            ]
            found += [*before[-1:], *after[:1]]
    return (_wanted(found[0]), _wanted(found[1])) if len(found) == 2 else None


def _wanted(noun: str) -> str:
    return "person" if noun in PEOPLE else noun


def position(relation: str | None, box: Sequence[float], other: Sequence[float]) -> float:
    """Return how well a box stands in a relation to another, 0 to 1.

    Args:
        relation: one of the relations, or None.
        box: left, top, right and bottom of the first object, for an image whose shorter side is 479 pixels.
        other: those of the second object.
    """
    across, down = (((other[low] + other[low + 2]) - (box[low] + box[low + 2])) / 2 for low in (0, 1))
    if relation in BESIDE:
        if min(abs(across), abs(down)) < CLOSE:
            return 1.0
        return CLOSE / max(abs(across), abs(down))
    if relation not in DIRECTIONS:
        return 0.0
    right, below = DIRECTIONS[relation]
    along, beside = (across, down) if right else (down, across)
    if along * (right or below) <= 0 or abs(along) <= abs(beside):
        return 0.0
    overlap = _overlap(box, other)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width, height = (max(0.0, min(box[n + 2], other[n + 2]) - max(box[n], other[n])) for n in (0, 1))
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - width * height
    return width * height / union if union > 0 else 0.0


def spatial(relation: str | None, wanted: tuple[str, str] | None, objects: Mapping[str, Sequence[Detection]]) -> float:
    """Return the score for a relation of two objects, 0 or 0.5 to 1: a quarter of the confidence of each object, and
    half of how well they are placed; less than 0.5 counts as 0.

    Args:
        relation: relation of the first object to the second.
        wanted: names of both; None if the caption does not tell them.
        objects: objects in the image by name, the most confident first, which is used.
    """
    if wanted is None:
        return 0.0
    found = [objects[name][0] for name in wanted if objects.get(name)]
    if len(found) < 2:  # at most 0.25
        return 0.0
    first, second = found
    score = (first.score + second.score) / 4 + position(relation, first.box, second.box) / 2
    return score if score >= 0.5 else 0.0


def without_adjectives(parsed: Parsed) -> str:
    """Return a caption without its adjectives, as CLIP reads those of the task complex."""
    return " ".join(word for word, tag in zip(parsed.words, parsed.tags, strict=True) if tag != "ADJ")
