"""What the benchmarks share: released models with random weights, and measurements of time, rate and memory."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sfumato.engine.timing import PhaseTimer
from sfumato.families import load_generator, releases
from sfumato.policy import Generator

LOGIT_SPREAD = 2.0
"""Standard deviation of the logits of random networks. The distributions are then about as sharp as trained ones."""


def build_generator(name: str, device: torch.device) -> Generator:
    """Build a bundled generator, or a released one with random weights, for which nothing is downloaded.

    Memory of earlier generators is freed before.
    """
    gc.collect()  # an engine and its optimizer refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    published = releases()
    if name not in published:
        return load_generator(name, device=device)
    family, release = published[name]
    with device:
        generator = family.build(release.shape)
    generator.card = release.card(family.name)
    randomize(generator.network.eval())
    return generator.to(device)


@torch.no_grad()
def randomize(network: nn.Module) -> None:
    """Draw weights with which every layer has an effect. As initialized for training, the last one has almost none."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    head.weight.mul_(LOGIT_SPREAD)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all work; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median wall-clock seconds; the caller must have warmed up."""
    synchronize(device)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best floating-point operations per second of square matrix products of a few sizes."""
    best = 0.0
    for size in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, 5, device))
    return best


def reset_peak_memory(device: torch.device) -> None:
    """Forget the largest memory so far of a GPU; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes of tensors on a GPU since `reset_peak_memory`; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


class MemoryTimer(PhaseTimer):
    """A timer that also keeps the largest memory of each phase."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.peaks: dict[str, int] = {}
        """bytes of tensors by phase, including those that were there before"""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        reset_peak_memory(self.device)
        with super().__call__(phase):
            yield
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_memory(self.device))
