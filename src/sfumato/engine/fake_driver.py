"""What `torch.cuda` does on the fake GPU: streams, events and graphs that do nothing, and a driver for C++ code."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch


class _Idle:
    """Stands for a stream or an event: there is no work to wait for."""

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __getattr__(self, name: str) -> Callable[..., "_Idle"]:
        return lambda *arguments, **named: self

    def elapsed_time(self, end: "_Idle") -> float:
        """Return the milliseconds between two events."""
        return 0.0


class Observer(Protocol):
    """Something that counts the work of the fake GPU."""

    @property
    def counts(self) -> tuple[int, int]:
        """Kernels and floating-point operations so far."""
        ...

    def count(self, kernels: int, flops: int) -> None:
        """Add work."""
        ...


OBSERVERS: list[Observer] = []
"""Whom a fake CUDA graph tells about its work."""


class _Graph:
    """Stands for a CUDA graph. A replay computes nothing, but the work of the recorded kernels counts."""

    def __init__(self):
        self.work: list[tuple[Observer, int, int]] = []

    def replay(self) -> None:
        for observer, kernels, flops in self.work:
            observer.count(kernels, flops)


@contextmanager
def _recording(graph: _Graph, *arguments: Any, **named: Any) -> Iterator[None]:
    """Record the work of a block, which counts only when it is replayed."""
    before = [observer.counts for observer in OBSERVERS]
    yield
    for observer, (kernels, flops) in zip(OBSERVERS, before, strict=True):
        more_kernels, more_flops = observer.counts
        graph.work.append((observer, more_kernels - kernels, more_flops - flops))
        observer.count(kernels - more_kernels, flops - more_flops)


CALLS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_bf16_supported": lambda *arguments, **named: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "current_stream": _Idle,
    "stream": nullcontext,
    "Stream": _Idle,
    "Event": _Idle,
    "CUDAGraph": _Graph,
    "graph": _recording,
    "graph_pool_handle": lambda: None,
}
"""Functions of `torch.cuda` on the fake GPU."""


@contextmanager
def driver() -> Iterator[None]:
    """Give C++ code a driver for "cuda" that does nothing, unless torch has one.

    Torch has such a driver for builds with CUDA on machines without a GPU, and none for builds without CUDA. There, the
    driver of the CPU, which does nothing either, takes its place in torch's table of drivers.
    """
    if torch.backends.cuda.is_built():
        torch._C._ensureCUDADeviceGuardSet()
        yield
        return
    library = Path(torch.__file__).parent / "lib" / ("libc10.dylib" if sys.platform == "darwin" else "libc10.so")
    table = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    cpu, cuda = 0, 1
    before, table[cuda] = table[cuda], table[cpu]
    try:
        yield
    finally:
        table[cuda] = before
