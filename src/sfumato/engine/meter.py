"""Measure memory, kernels and arithmetic of torch code by phase, on real tensors or on those of `fake_cuda`."""

import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, no_type_check

import jaxtyping
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sfumato.engine import fake_cuda, fake_driver, fake_kernels
from sfumato.engine.fake_cuda import leaves
from sfumato.engine.fake_driver import OBSERVERS

aten = torch.ops.aten
BLOCK = 512
"""Torch's allocator for CUDA gives out memory in multiples of this number of bytes."""
NO_KERNELS = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
"""Operators that only allocate, in addition to those that return views."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
"""Operators whose results the CPU needs before it can go on."""
_OWN = (fake_cuda.__file__, fake_driver.__file__, fake_kernels.__file__, __file__)
HIDDEN = (*(str(Path(m.__file__ or "").parent) for m in (torch, jaxtyping)), *_OWN, "<")
"""Beginnings of the names of files in which nobody looks for an operator: torch, type checks, fake GPU, this file."""
READS, UPLOADS = "reads a result", "uploads without non_blocking"
"""Reasons for which the CPU waits."""


class HostSyncError(RuntimeError):
    """The CPU waits for the GPU in code where this is forbidden."""


@dataclass
class Phase:
    """Measurements of a phase."""

    peak: int = 0
    """largest number of bytes of live tensors, including those that the phase did not create"""
    kernels: int = 0
    """number of operators that compute or copy"""
    flops: int = 0
    """floating-point operations of matrix products, convolutions and attention; a multiplication and an addition are
    two"""
    syncs: list[str] = field(default_factory=list)
    """what makes the CPU wait for the GPU: the reason (`READS` or `UPLOADS`), the operator, and its place"""


class Meter(TorchDispatchMode):
    """Counts within `with meter:`; `with meter.phase(name):` attributes the counts to a phase.

    Memory is that of tensors' storages, counted once for all views and as long as any tensor, or the graph of autograd,
    holds it. Memory inside kernels (workspaces) is not counted. Of tensors that exist before, only those given to `add`
    count.
    """

    def __init__(self, device: torch.device):
        """Measure tensors on devices of this type: CUDA, in blocks as torch allocates it, or the CPU."""
        super().__init__()
        self.kind = device.type
        self.live = 0
        """bytes of live tensors"""
        self.phases: dict[str, Phase] = {}
        self._current = Phase()
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._strict = False

    def __enter__(self) -> "Meter":
        if self.kind == "cuda":
            OBSERVERS.append(self)
        return super().__enter__()

    def __exit__(self, *arguments: Any) -> None:
        super().__exit__(*arguments)
        if self.kind == "cuda":
            OBSERVERS.remove(self)

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Measure a phase; measurements of several phases with one name are added up."""
        before, self._current = self._current, self.phases.setdefault(name, Phase())
        self._current.peak = max(self._current.peak, self.live)
        try:
            yield self._current
        finally:
            before.peak = max(before.peak, self._current.peak)
            self._current = before

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        """Forbid everything that makes the CPU wait for the GPU.

        Raises:
            HostSyncError: it happened; the message has the operator and the place in the code.
        """
        before, self._strict = self._strict, True
        try:
            yield
        finally:
            self._strict = before

    @property
    def counts(self) -> tuple[int, int]:
        """Kernels and floating-point operations of the current phase so far."""
        return self._current.kernels, self._current.flops

    def count(self, kernels: int, flops: int) -> None:
        """Add work that is not executed to the current phase."""
        self._current.kernels += kernels
        self._current.flops += flops

    def add(self, module: nn.Module) -> None:
        """Count the parameters and buffers of a module."""
        self._see(list(module.state_dict(keep_vars=True).values()))

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is fake_cuda.DEVICE_OF:
            return func(*args)
        reason = _wait(func, args, kwargs)
        if reason:
            self._note_sync(reason, func)
        result = func(*args, **kwargs)
        self._see(result)
        if _computes(func) and any(self._is_here(x) for x in leaves((result, args, kwargs))):
            self._current.kernels += 1
            count = flop_registry.get(func.overloadpacket)
            if count is not None:
                self._current.flops += count(*args, **kwargs, out_val=result)
        return result

    @no_type_check
    def _is_here(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.device.type == self.kind

    @no_type_check
    def _see(self, x: Any) -> None:
        """Count the storages of new tensors until they are freed."""
        for tensor in leaves(x):
            if not self._is_here(tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                size = storage.nbytes()
                size = -(-size // BLOCK) * BLOCK if self.kind == "cuda" else size
                self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))
                self.live += size
                self._current.peak = max(self._current.peak, self.live)

    @no_type_check
    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size

    def _note_sync(self, reason: str, func: Any) -> None:
        frames = [f for f in traceback.extract_stack() if not f.filename.startswith(HIDDEN)]
        place = frames[-1]
        line = f"{reason} ({func}) at {place.filename}:{place.lineno}: {place.line}"
        self._current.syncs.append(line)
        if self._strict:
            raise HostSyncError(line)


@no_type_check
@cache
def _computes(func: Any) -> bool:
    """Return whether an operator runs a kernel."""
    return not fake_cuda.makes_view(func) and func not in NO_KERNELS


@no_type_check
def _wait(func: Any, args: Any, kwargs: Any) -> str:
    """Return why an operator makes the CPU wait for the GPU, as `torch.cuda.set_sync_debug_mode` counts it; "" if it
    does not."""
    if func in (aten._to_copy.default, aten.copy_.default):
        if func is aten._to_copy.default:
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
            non_blocking = kwargs.get("non_blocking", False)
        else:
            source, target, non_blocking = args[1].device, args[0].device, args[2:] == (True,)
        if source.type == "cuda" and target.type == "cpu":
            return READS
        return UPLOADS if source.type == "cpu" and target.type != "cpu" and not non_blocking else ""
    if func in fake_cuda.INDEXING:
        waits = any(index is not None and index.dtype == torch.bool for index in args[1])
    else:
        waits = func in WAITING
    return READS if waits and args[0].is_cuda else ""
