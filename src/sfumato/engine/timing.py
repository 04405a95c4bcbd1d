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
        self._processor: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began, used = self._now(), time.process_time()
        yield
        self._spans.append((phase, began, self._now()))
        self._processor[phase] = self._processor.get(phase, 0.0) + time.process_time() - used

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase so far, in order of their first use."""
        seconds: dict[str, float] = {}
        for phase, began, ended in self._spans:
            seconds[phase] = seconds.get(phase, 0.0) + self._seconds_between(began, ended)
        return seconds

    @property
    def processor(self) -> dict[str, float]:
        """Processor seconds of each phase so far, over all threads of this process. Unlike `seconds`, they leave out
        the time in which other programs had the processor. On a GPU, which does the work, these are the `seconds`."""
        return self.seconds if self.device.type == "cuda" else dict(self._processor)

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
