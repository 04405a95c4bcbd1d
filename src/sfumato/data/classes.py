"""What the policy is asked to draw: classes or captions, and how a run picks them."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.rollout import CaptionFeatures, Conditions


def find_class(name_or_number: str | int, class_names: Sequence[str]) -> int:
    """The label of a class given by name (any case) or number.

    Raises:
        UserError: there is no such class; the message names close ones.
    """
    text = str(name_or_number).strip().lower()
    if re.fullmatch(r"-?\d+", text):
        label = int(text)
        if 0 <= label < len(class_names):
            return label
        raise UserError(f"classes: there is no class number {label}; give 0 to {len(class_names) - 1}, or a name")
    lowered = [name.lower() for name in class_names]
    if text in lowered:
        return lowered.index(text)
    close = difflib.get_close_matches(text, lowered, n=3) or [name for name in lowered if text in name][:3]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "`sfumato classes MODEL` lists them"
    raise UserError(f"classes: there is no class {text!r}; {hint}")


def find_classes(names_or_ranges: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Labels of classes given by name, by number, or as ranges "first-last" with both ends in.

    Raises:
        UserError: there is no such class, or a range is empty.
    """
    labels: list[int] = []
    for item in names_or_ranges:
        ends = re.fullmatch(r"(\d+)-(\d+)", str(item).strip())
        if ends:
            first, last = (find_class(end, class_names) for end in ends.groups())
            if last < first:
                raise UserError(f"classes: the range {item} is empty; give the smaller number first")
            labels += range(first, last + 1)
        else:
            labels.append(find_class(item, class_names))
    return list(dict.fromkeys(labels))


def find_labels(class_names: Sequence[str], conditions: Conditions) -> Int[Tensor, " B"] | None:
    """Numbers, among these classes, of what the images should show; None if one is not among them.

    An image's class is the "class" of its prompt's metadata, or else the condition's name. Where several classes have
    one name (ImageNet has two cranes), it is the one of the condition's own label.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    wanted = [data.get("class", name) for data, name in zip(conditions.metadata, conditions.names, strict=True)]
    if not all(isinstance(name, str) and name in numbers for name in wanted):
        return None
    own = conditions.labels.tolist()
    same = [0 <= o < len(class_names) and class_names[o] == name for o, name in zip(own, wanted, strict=True)]
    return torch.tensor([o if s else numbers[str(name)] for o, s, name in zip(own, same, wanted, strict=True)])


def class_conditions(
    labels: Sequence[int], class_names: Sequence[str], template: str = "a photo of a {name}"
) -> Conditions:
    """Conditions for these labels, on the CPU; their captions are the template with the class's name in it."""
    names = tuple(class_names[i] for i in labels)
    captions = tuple(template.replace("{name}", name) for name in names)
    return Conditions(labels=torch.tensor(labels), names=names, captions=captions)


Encode = Callable[[Sequence[str]], Sequence[Float[Tensor, "_ W"]]]
"""What reads captions: the features of each caption's text tokens (`sfumato.text.encoders`)."""


def caption_conditions(
    captions: Sequence[str],
    encode: Encode,
    longest: int | None = None,
    metadata: Sequence[Mapping[str, object]] = (),
) -> Conditions:
    """Conditions that ask for these captions, on the CPU; equal captions are read once.

    Args:
        captions: one an image.
        encode: reads distinct captions.
        longest: what is beyond so many text tokens is cut off.
        metadata: what else is known of each caption, for rewards.
    """
    distinct = list(dict.fromkeys(captions))
    rows = {caption: row for row, caption in enumerate(distinct)}
    return Conditions(
        labels=torch.tensor([rows[caption] for caption in captions]),
        names=tuple(captions),
        metadata=tuple(metadata),
        text=CaptionFeatures.padded(encode(distinct), longest),
    )


@runtime_checkable
class ConditionSampler(Protocol):
    """Where a run's conditions come from."""

    def next(self, count: int, rng: torch.Generator) -> Conditions:
        """`count` conditions picked at random, on the CPU; different ones as long as there are enough."""
        ...

    def spread(self, count: int) -> Conditions:
        """`count` conditions spread evenly over all there are: the same at every call."""
        ...


class ClassSampler:
    """Labels drawn uniformly from all classes, or from some, with replacement between batches and none within."""

    def __init__(
        self,
        class_names: Sequence[str],
        classes: Sequence[str | int] = (),
        template: str = "a photo of a {name}",
    ):
        self.class_names, self.template = class_names, template
        self.labels = find_classes(classes, class_names) or list(range(len(class_names)))

    def next(self, count: int, rng: torch.Generator) -> Conditions:
        """`count` classes, different ones as long as there are enough."""
        return self._conditions(pick(len(self.labels), count, rng))

    def spread(self, count: int) -> Conditions:
        """`count` classes spread evenly over all there are."""
        return self._conditions(spread(len(self.labels), count))

    def _conditions(self, positions: Sequence[int]) -> Conditions:
        return class_conditions([self.labels[i] for i in positions], self.class_names, self.template)


def pick(total: int, count: int, rng: torch.Generator) -> list[int]:
    """`count` numbers below `total` in random order, different ones as long as there are enough."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(total, generator=rng).tolist()
    return order[:count]


def spread(total: int, count: int) -> list[int]:
    """`count` numbers below `total` at even distances: all of them in order if there are as many."""
    return torch.linspace(0, total - 1, count).long().tolist()
