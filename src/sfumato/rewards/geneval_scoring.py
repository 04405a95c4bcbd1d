"""GenEval (Ghosh, Hajishirzi & Schmidt 2023): whether the objects that a prompt names are in the image, with the right
number, color and position. The rules are those of the authors' `evaluation/evaluate_images.py`; they need no network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Confidence above which an object counts, in general and in the counting task."""
MAX_OBJECTS = 16
"""Largest number of objects per class; the most confident ones are kept."""
POSITION_THRESHOLD = 0.1
"""Offset between two objects, as a share of their sizes, up to which neither is beside the other."""


@dataclass(frozen=True)
class Detection:
    """An object in an image, as reported by a detector."""

    box: tuple[float, float, float, float]
    """left, top, right and bottom in pixels"""
    score: float
    """confidence, 0 to 1"""
    mask: Bool[Tensor, "H W"] | None = None
    """pixels of the object"""

    def scaled(self, scale: float) -> "Detection":
        """Return the object, without its pixels, in an image that is this much larger."""
        left, top, right, bottom = (side * scale for side in self.box)
        return Detection((left, top, right, bottom), self.score)


Objects = Mapping[str, Sequence[Detection]]
"""Objects in an image by class, the most confident first."""
Classify = Callable[[Sequence[Detection], str], Sequence[str]]
"""Returns the color of each of these objects of a class."""


def keep(detected: Objects, tag: str) -> dict[str, list[Detection]]:
    """Return the objects that count for a task, at most 16 per class, the most confident first.

    The task "counting" has a higher threshold than the others.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept = {}
    for name, objects in detected.items():
        sure = sorted((o for o in objects if o.score > threshold), key=lambda o: -o.score)[:MAX_OBJECTS]
        if sure:
            kept[name] = sure
    return kept


def relative_position(
    box: Sequence[float], other: Sequence[float], threshold: float = POSITION_THRESHOLD
) -> frozenset[str]:
    """Return the position of a box relative to another: "left of" or "right of", "above" or "below", both, or none.

    A direction counts if, along its axis, the distance of the centers minus `threshold` times both sizes is more than
    half of the total distance.
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
    """Return whether an image shows what its prompt describes.

    Args:
        objects: objects in the image that count, the most confident first.
        metadata: the prompt's line of GenEval's `evaluation_metadata.jsonl`. "include" lists objects that must be in
            the image (class, count, and optionally color and position relative to an earlier object), "exclude" those
            that must not.
        classify: names colors.
    """
    correct = True
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        chosen = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        matched = len(chosen) >= wanted["count"]
        if matched and "color" in wanted:
            matched = list(classify(chosen, wanted["class"])).count(wanted["color"]) >= wanted["count"]
        if matched and "position" in wanted:
            relation, number = wanted["position"]
            others = groups[number]
            matched = others is not None and all(
                relation in relative_position(one.box, other.box) for one in chosen for other in others
            )
        groups.append(chosen if matched else None)
        correct = correct and matched
    for unwanted in metadata.get("exclude", ()):
        correct = correct and len(objects.get(unwanted["class"], ())) < unwanted["count"]
    return correct


def graded(objects: Objects, metadata: Mapping, classify: Classify) -> float:
    """Return how well the conditions of "include" are met on average, at most 1, as in the reward of Flow-GRPO
    (Liu et al. 2025, arXiv 2505.05470, `reward-server/reward_server/gen_eval.py`).

    For each class there is one condition for the number, 1 - |found - wanted| / wanted, which is negative for more than
    twice as many. If the number is right, there is another for the color, 1 - |this color - wanted| / wanted, and one
    for the position, 1 or 0; if it is wrong, one of 0 for both together. "exclude" is not read, since numbers must be
    exact. Flow-GRPO's code adds a 1 even for a wrong position, besides the 0; this function does not.

    The arguments are those of `is_correct`.
    """
    marks: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        found, count = list(objects.get(wanted["class"], ())), wanted["count"]
        marks.append(1 - abs(count - len(found)) / count)
        matched = len(found) == count
        if not matched and ("color" in wanted or "position" in wanted):
            marks.append(0.0)
        if matched and "color" in wanted:
            right = list(classify(found, wanted["class"])).count(wanted["color"])
            marks.append(1 - abs(count - right) / count)
            matched = right == count
        if matched and "position" in wanted:
            relation, number = wanted["position"]
            others = groups[number]
            matched = others is not None and all(
                relation in relative_position(one.box, other.box) for one in found for other in others
            )
            marks.append(float(matched))
        groups.append(found if matched else None)
    return sum(marks) / len(marks) if marks else 0.0


def summary(tags: Sequence[str], correct: Sequence[bool]) -> dict[str, float]:
    """Return the share of correct images of each task, in order of first appearance, and their mean as "overall"."""
    tasks = {tag: [c for t, c in zip(tags, correct, strict=True) if t == tag] for tag in dict.fromkeys(tags)}
    shares = {tag: sum(results) / len(results) for tag, results in tasks.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
