"""Seconds per phase of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class PhaseTimer:
    """Seconds spent in each phase. On a GPU, a phase begins and ends when the GPU has done the work queued before.

    The phases only leave marks in the GPU's queue. Reading the seconds waits for the GPU, so read them once per step.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._spans: list[tuple[str, Any, Any]] = []
        """phase, and the moments of its beginning and end"""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = self._now()
        yield
        self._spans.append((phase, began, self._now()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase so far, in order of their first use."""
        seconds: dict[str, float] = {}
        for phase, began, ended in self._spans:
            seconds[phase] = seconds.get(phase, 0.0) + self._seconds_between(began, ended)
        return seconds

    def total(self) -> float:
        """Return the seconds spent in all phases together."""
        return sum(self.seconds.values())

    def _now(self) -> Any:
        """Return the present moment: seconds on the CPU, an event in the queue of a GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _seconds_between(self, began: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return ended - began
        ended.synchronize()
        return began.elapsed_time(ended) / 1000
