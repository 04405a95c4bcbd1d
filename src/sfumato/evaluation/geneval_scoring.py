"""GenEval (Ghosh, Hajishirzi & Schmidt 2023): whether the objects that a prompt names are there, as many, of that
colour, and in that place. The rules are those of the authors' `evaluation/evaluate_images.py`; they need no network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""confidence above which an object is there; the second where objects are counted"""
MAX_OBJECTS = 16
"""of a class, the surest ones"""
POSITION_THRESHOLD = 0.1
"""share of the two objects' sizes that one may lie off the other before it is beside it"""


@dataclass(frozen=True)
class Detection:
    """An object that a detector found."""

    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels"""
    score: float
    """confidence, 0 to 1"""
    mask: Bool[Tensor, "H W"] | None = None
    """its pixels"""


Objects = Mapping[str, Sequence[Detection]]
"""What is in an image by class, the surest first"""
Classify = Callable[[Sequence[Detection], str], Sequence[str]]
"""The colour of each of these objects of a class"""


def keep(found: Objects, tag: str) -> dict[str, list[Detection]]:
    """The objects that count for a task ("counting" wants to be surer), at most 16 a class, the surest first."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept = {}
    for name, objects in found.items():
        sure = sorted((o for o in objects if o.score > threshold), key=lambda o: -o.score)[:MAX_OBJECTS]
        if sure:
            kept[name] = sure
    return kept


def relative_position(
    box: Sequence[float], other: Sequence[float], threshold: float = POSITION_THRESHOLD
) -> frozenset[str]:
    """Where a box lies as seen from another: "left of" or "right of", "above" or "below", two of them, or none.

    The distance of the centres, less `threshold` times both sizes, must be more than half of the distance along an
    axis.
    """
    offset, beyond = [], []
    for low, high in ((0, 2), (1, 3)):
        distance = (box[low] + box[high]) / 2 - (other[low] + other[high]) / 2
        slack = threshold * (abs(box[high] - box[low]) + abs(other[high] - other[low]))
        offset.append(distance)
        beyond.append(max(abs(distance) - slack, 0.0) * (1 if distance > 0 else -1))
    if all(abs(b) < 1e-3 for b in beyond):
        return frozenset()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    across, down = (b / length for b in beyond)
    holds = (across < -0.5, across > 0.5, down < -0.5, down > 0.5)
    return frozenset(name for name, true in zip(RELATIONS, holds, strict=True) if true)


def is_correct(objects: Objects, metadata: Mapping, classify: Classify) -> bool:
    """Whether an image shows what its prompt asks for.

    Args:
        objects: what is in the image and counts, the surest first.
        metadata: the prompt's line of GenEval's `evaluation_metadata.jsonl`: "include" lists what must be there (class
            and count, perhaps colour, perhaps position relative to an earlier one), "exclude" what must not.
        classify: names colours.
    """
    correct = True
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        matched = len(found) >= wanted["count"]
        if matched and "color" in wanted:
            matched = list(classify(found, wanted["class"])).count(wanted["color"]) >= wanted["count"]
        if matched and "position" in wanted:
            relation, number = wanted["position"]
            others = groups[number]
            matched = others is not None and all(
                relation in relative_position(one.box, other.box) for one in found for other in others
            )
        groups.append(found if matched else None)
        correct = correct and matched
    for unwanted in metadata.get("exclude", ()):
        correct = correct and len(objects.get(unwanted["class"], ())) < unwanted["count"]
    return correct


def summary(tags: Sequence[str], correct: Sequence[bool]) -> dict[str, float]:
    """Share of correct images of each task, in the order in which the tasks come, and "overall": their mean."""
    tasks = {tag: [c for t, c in zip(tags, correct, strict=True) if t == tag] for tag in dict.fromkeys(tags)}
    shares = {tag: sum(results) / len(results) for tag, results in tasks.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
