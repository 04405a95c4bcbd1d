"""What a generator may do beyond the protocol of `Generator`: protocols, checked with `isinstance`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.settings import Settings


@dataclass(frozen=True)
class Reduction:
    """A function of logits, computed for some positions at a time."""

    function: Callable[[Tensor, slice], Tensor]
    """function of the logits (B, t, V) of some positions, and which these are, that returns (B, t) or (B, t, F)"""
    positions: int
    """number of positions at a time"""


@runtime_checkable
class ReducesLogits(Protocol):
    """A generator that can return a function of its logits without holding all of them."""

    reduces_logits: bool
    """True"""

    def logits(
        self, inputs: Any, tokens: Int[Tensor, "B L"], settings: Settings, reduction: Reduction | None = None, /
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of all units, teacher-forced, or a function of them (B, L)."""
        ...


@runtime_checkable
class ScoresPrefixes(Protocol):
    """A generator that can score the first units of an image without the others."""

    scores_prefixes: bool
    """True"""

    def logits(
        self,
        inputs: Any,
        tokens: Int[Tensor, "B L"],
        settings: Settings,
        reduction: Reduction | None = None,
        count: int | None = None,
        /,
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of the first `count` units, whose tokens are given, or a function of them (B, L)."""
        ...


@runtime_checkable
class DecodesPrefixes(Protocol):
    """A generator whose first units alone decode to an image, a coarse one: a preview."""

    decodes_prefixes: bool
    """True"""

    def decode(self, tokens: Int[Tensor, "B L"], count: int | None = None, /) -> Float[Tensor, "B 3 H W"]:
        """Decode the tokens of the first `count` units, or of all, to images in [0, 1]."""
        ...


@runtime_checkable
class Forks(Protocol):
    """A generator whose decoding state can be copied, so that images share the work of their first units."""

    def fork(self, state: Any, repeats: int, /) -> Any:
        """Return a state with each image `repeats` times, after at least one step. Copies are adjacent, and steps of
        one state leave the other as it is."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A generator whose units belong to parts with vocabularies of their own: a text, and an image after it.

    It has no logits of all units at once; `logits` needs a reduction, which is called for positions of one part at a
    time. At padding, whose tokens have probability 1, what it returns is 0: the log-probability and the entropy.
    """

    part_units: tuple[int, ...]
    """number of units of each part"""

    def parts(self, tokens: Int[Tensor, "B L"], /) -> Mapping[str, Bool[Tensor, "B L"]]:
        """Return which tokens belong to each part, by its name; padding belongs to none."""
        ...

    def texts(self, tokens: Int[Tensor, "B L"], /) -> tuple[str, ...]:
        """Return the text of each image."""
        ...

    def logits(
        self, inputs: Any, tokens: Int[Tensor, "B L"], settings: Settings, reduction: Reduction, /
    ) -> Float[Tensor, "B L *F"]:
        """Return a function of the guided logits of all units, teacher-forced."""
        ...
