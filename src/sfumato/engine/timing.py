"""Seconds per phase of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Wall-clock seconds spent in each phase. On a GPU, a phase ends when the work on the GPU is done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - began

    def total(self) -> float:
        """Return the seconds spent in all phases together."""
        return sum(self.seconds.values())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
