"""The protocol of hooks, and the progress that they receive."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sfumato.rollout import Batch


@dataclass(kw_only=True)
class Progress:
    """Progress of a run. Hooks run in order and may change `metrics`, `steps` and `stop`."""

    step: int
    """number of steps done"""
    steps: int
    """total number of steps; a hook that sets it to `step` makes this step the last one"""
    batch: Batch | None = None
    """batch that the step learned from; None before the first step and on resuming"""
    metrics: dict[str, float] = field(default_factory=dict)
    """metrics of the step"""
    processor: Mapping[str, float] = field(default_factory=dict)
    """processor seconds of the step by phase; on a GPU, the seconds of the phase"""
    stop: bool = False
    """set to end the run after this step, with everything saved"""

    @property
    def is_start(self) -> bool:
        """Whether training has not started yet."""
        return self.step == 0

    @property
    def is_resumed(self) -> bool:
        """Whether the run has just resumed from a checkpoint; everything before the checkpoint is done."""
        return self.step > 0 and self.batch is None

    @property
    def is_last(self) -> bool:
        """Whether this is the last step."""
        return self.step == self.steps

    def due(self, every: int) -> bool:
        """Return whether an action is due that happens every `every` steps and at the last step."""
        return self.step % every == 0 or self.is_last


@runtime_checkable
class Hook(Protocol):
    """Callable that every process calls before the first step (or on resuming) and after every step."""

    def __call__(self, progress: Progress, /) -> None: ...
