"""Choose the classes of a training run."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from sfumato.naming import class_words, find_classes
from sfumato.request import Words


@runtime_checkable
class WordsSampler(Protocol):
    """Source of the classes or captions that a run draws."""

    def next(self, count: int, rng: torch.Generator) -> Words:
        """Choose `count` items at random, without repeats if there are enough."""
        ...

    def spread(self, count: int) -> Words:
        """Choose `count` items at even intervals over all items, the same at each call."""
        ...


class ClassSampler:
    """Draws labels uniformly from all or some classes, without repeats within a batch if there are enough."""

    def __init__(
        self,
        class_names: Sequence[str],
        classes: Sequence[str | int] = (),
        template: str = "a photo of a {name}",
    ):
        self.class_names, self.template = class_names, template
        self.labels = find_classes(classes, class_names) or list(range(len(class_names)))

    def next(self, count: int, rng: torch.Generator) -> Words:
        """Choose `count` classes at random, without repeats if there are enough."""
        return self._words(pick(len(self.labels), count, rng))

    def spread(self, count: int) -> Words:
        """Choose `count` classes at even intervals over all classes."""
        return self._words(spread(len(self.labels), count))

    def _words(self, positions: Sequence[int]) -> Words:
        return class_words([self.labels[i] for i in positions], self.class_names, self.template)


def pick(total: int, count: int, rng: torch.Generator) -> list[int]:
    """Return `count` numbers below `total` in random order, without repeats if there are enough."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(total, generator=rng).tolist()
    return order[:count]


def spread(total: int, count: int) -> list[int]:
    """Return `count` numbers below `total` at even intervals; all of them, in order, if `count` equals `total`."""
    return torch.linspace(0, total - 1, count).long().tolist()
