"""What the policy is asked to draw during training: classes picked at random."""

import difflib
import re
from collections.abc import Sequence

import torch

from sfumato.rollout import Conditions


def find_class(name_or_number: str | int, class_names: Sequence[str]) -> int:
    """The label of a class given by name (any case) or number.

    Raises:
        ValueError: there is no such class; the message names close ones.
    """
    text = str(name_or_number).strip().lower()
    if re.fullmatch(r"-?\d+", text):
        label = int(text)
        if 0 <= label < len(class_names):
            return label
        raise ValueError(f"classes: there is no class number {label}; give 0 to {len(class_names) - 1}, or a name")
    lowered = [name.lower() for name in class_names]
    if text in lowered:
        return lowered.index(text)
    close = difflib.get_close_matches(text, lowered, n=3) or [name for name in lowered if text in name][:3]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "`sfumato classes MODEL` lists them"
    raise ValueError(f"classes: there is no class {text!r}; {hint}")


def find_classes(names_or_ranges: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Labels of classes given by name, by number, or as ranges "first-last" with both ends in.

    Raises:
        ValueError: there is no such class, or a range is empty.
    """
    labels: list[int] = []
    for item in names_or_ranges:
        ends = re.fullmatch(r"(\d+)-(\d+)", str(item).strip())
        if ends:
            first, last = (find_class(end, class_names) for end in ends.groups())
            if last < first:
                raise ValueError(f"classes: the range {item} is empty; give the smaller number first")
            labels += range(first, last + 1)
        else:
            labels.append(find_class(item, class_names))
    return list(dict.fromkeys(labels))


def class_conditions(labels: Sequence[int], class_names: Sequence[str]) -> Conditions:
    """Conditions for these labels, on the CPU."""
    return Conditions(labels=torch.tensor(labels), names=tuple(class_names[i] for i in labels))


class ClassSampler:
    """Labels drawn uniformly from all classes, or from some, with replacement between batches and none within."""

    def __init__(self, class_names: Sequence[str], classes: Sequence[str | int] = ()):
        self.class_names = class_names
        self.labels = find_classes(classes, class_names) or list(range(len(class_names)))

    def next(self, count: int, rng: torch.Generator) -> Conditions:
        """`count` classes, different ones as long as there are enough."""
        order: list[int] = []
        while len(order) < count:
            order += torch.randperm(len(self.labels), generator=rng).tolist()
        return class_conditions([self.labels[i] for i in order[:count]], self.class_names)
