"""Seconds per phase, on the CPU's clock and from CUDA events."""

import time
from typing import Any

import pytest
import torch

from sfumato.engine.timing import PhaseTimer


def test_seconds_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    moments = iter([1.0, 1.5, 2.0, 5.0, 6.0, 6.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    timer = PhaseTimer(torch.device("cpu"))
    assert timer.seconds == {}
    for phase in ("draw", "score", "draw"):
        with timer(phase):
            pass
    assert timer.seconds == {"draw": 0.75, "score": 3.0}
    assert list(timer.seconds) == ["draw", "score"]
    assert timer.total() == 3.75


def test_a_failed_phase_does_not_count():
    timer = PhaseTimer(torch.device("cpu"))
    with pytest.raises(ValueError, match="no"), timer("draw"):
        raise ValueError("no")
    assert timer.seconds == {}


def test_seconds_on_a_gpu_are_read_only_at_the_end(monkeypatch: pytest.MonkeyPatch):
    """The GPU reaches an event later than the CPU records it; the times are those of the GPU."""
    waits = []
    reached = iter([10.0, 30.0, 30.0, 70.0, 71.0, 75.0])  # milliseconds

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing
            self.milliseconds: float | None = None

        def record(self, stream: Any) -> None:
            assert stream == "stream of cuda:1"
            self.milliseconds = next(reached)

        def synchronize(self) -> None:
            waits.append(self)

        def elapsed_time(self, end: "Event") -> float:
            assert end in waits, "the GPU may not have reached the event"
            assert self.milliseconds is not None
            assert end.milliseconds is not None
            return end.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: pytest.fail("it waits for the GPU"))
    timer = PhaseTimer(torch.device("cuda:1"))
    for phase in ("draw", "score", "draw"):
        with timer(phase):
            pass
    assert not waits
    assert timer.seconds == pytest.approx({"draw": 0.024, "score": 0.04}, abs=1e-12)
    assert timer.total() == pytest.approx(0.064, abs=1e-12)
