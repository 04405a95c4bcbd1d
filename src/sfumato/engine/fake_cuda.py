"""CUDA tensors without a GPU: shapes, types and devices as on a GPU, but no memory and no numbers.

Inside `fake_cuda()`, tensors on the device "cuda" are `FakeCuda`. Tensors on the CPU stay real, so a program reads its
files as usual, and what it would compute on the GPU costs almost nothing. Numbers that come back from the fake GPU are
zeros.

All of this runs for every operator. `no_type_check` keeps the type checks of tests away, which would take longer.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, no_type_check

import torch
import torch.__future__ as modules
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils as foreach
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default
CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operators that also accept positions on the CPU."""
LARGE = 2**20
"""More numbers than this come back from the fake GPU as one number in memory, which cannot be changed in place."""
PRODUCTS = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
}
"""Operators whose tensors must have one type."""
COPYING = {aten.copy_.default, aten._to_copy.default}
"""Operators that move tensors between devices."""


@no_type_check
class FakeCuda(Tensor):
    """A tensor on a fake GPU: a tensor on torch's "meta" device, which has no data, with the dispatch keys of CUDA.

    Two names of the device are in use. Python code sees "cuda:0". Torch's C++ code sees "meta", because it would look
    for a stream of "cuda" in the backward pass; only autocast, which insists on "cuda", sees that name too.
    """

    on_meta: Tensor
    seen_by_autocast = False
    """whether C++ code sees the name "cuda" """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, on_meta: Tensor) -> "FakeCuda":
        """Wrap a meta tensor."""
        self = Tensor._make_wrapper_subclass(
            cls,
            on_meta.shape,
            strides=on_meta.stride(),
            storage_offset=on_meta.storage_offset(),
            dtype=on_meta.dtype,
            device=CUDA,
            dispatch_device=True,
        )
        self.on_meta = on_meta
        return self

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The fake GPU."""
        return CUDA

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True, as on a GPU."""
        return True

    @property
    def is_meta(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False, as on a GPU."""
        return False

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage, which views of this tensor share; it has a size but no data."""
        return self.on_meta.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"FakeCuda({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeCuda":
        twin = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            twin._is_param = True
        memo[id(self)] = twin
        return twin  # pyright: ignore[reportReturnType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


@no_type_check
def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator that reads or makes fake tensors."""
    if func is DEVICE_OF:
        return CUDA if FakeCuda.seen_by_autocast else META
    if func is aten._local_scalar_dense.default:
        return torch.zeros((), dtype=args[0].dtype).item()
    if func is aten.equal.default:
        return False
    if func is aten._to_copy.default and torch.device(kwargs.get("device") or META) == CPU:
        zero = torch.zeros((), dtype=kwargs.get("dtype") or args[0].dtype)
        return zero.expand(args[0].shape) if args[0].numel() > LARGE else zero.expand(args[0].shape).clone()
    if func is aten.copy_.default and not isinstance(args[0], FakeCuda):
        return args[0]
    if func in UNKNOWN_SIZES:
        return _mapped(FakeCuda, UNKNOWN_SIZES[func](args[0], *args[1:], **kwargs))
    _check(func, args, kwargs)
    if func in INDEXING:
        args = (args[0], _positions(args[1]), *args[2:])
    if makes_view(func):
        return _run(func, args, kwargs)
    key = _signature((func, args, tuple(kwargs.items())))
    if key not in _LAYOUTS:
        result = _run(func, args, kwargs)
        _LAYOUTS[key] = _mapped(_layout, result)
        return result
    if func._schema.is_mutable:
        return args[0] if func._schema.returns else None
    return _mapped(_allocated, _LAYOUTS[key])


@no_type_check
def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on meta tensors. An argument that is returned, because it was changed, stays the same object."""
    fakes = {id(x.on_meta): x for x in leaves((args, kwargs)) if isinstance(x, FakeCuda)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return fakes[id(x)] if id(x) in fakes else FakeCuda(x)

    return _mapped(wrap, func(*_mapped(_meta, args), **_mapped(_meta, kwargs)))


@no_type_check
@dataclass(frozen=True)
class _Layout:
    """Everything that distinguishes a tensor from others, apart from its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


_LAYOUTS: dict[Any, Any] = {}
"""Results of operators by operator and arguments: torch computes layouts slowly, and blocks of a network are alike."""


@no_type_check
def _layout(x: Any) -> Any:
    return _Layout(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x


@no_type_check
def _allocated(x: Any) -> Any:
    if not isinstance(x, _Layout):
        return x
    return FakeCuda(torch.empty_strided(x.shape, x.stride, dtype=x.dtype, device=META))


@no_type_check
def _signature(x: Any) -> Any:
    """Return a key that distinguishes arguments of an operator; 1, 1.0 and True are different."""
    if isinstance(x, list | tuple):
        return tuple(_signature(item) for item in x)
    return _layout(x) if isinstance(x, Tensor) else (type(x), x)


@no_type_check
@cache
def makes_view(func: Any) -> bool:
    """Return whether an operator returns other views of its arguments' memory, and so computes nothing."""
    shared = any(x.alias_info is not None for x in func._schema.returns)
    return func is aten._unsafe_view.default or (shared and not func._schema.is_mutable)


@no_type_check
def leaves(x: Any) -> Iterator[Any]:
    """Yield what is in nested lists, tuples and dicts. Arguments of operators have no other containers."""
    if isinstance(x, list | tuple):
        for item in x:
            yield from leaves(item)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))
    else:
        yield x


@no_type_check
def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to everything in nested lists, tuples and dicts."""
    if isinstance(x, list):
        return [_mapped(function, item) for item in x]
    if isinstance(x, tuple) and type(x) is not torch.Size:
        return tuple(_mapped(function, item) for item in x)
    if isinstance(x, dict):
        return {name: _mapped(function, item) for name, item in x.items()}
    return function(x)


@no_type_check
def _meta(x: Any) -> Any:
    """Return the meta tensor of a tensor, and the device "meta" instead of "cuda"."""
    if isinstance(x, FakeCuda):
        return x.on_meta
    if isinstance(x, Tensor):
        return x if x.is_meta else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
    return META if isinstance(x, torch.device) and x.type == "cuda" else x


@no_type_check
def _check(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise an error where a GPU would: tensors are on two devices, or a product gets two types."""
    if func in COPYING:
        return
    for x in leaves(args[:1] if func in INDEXING else (args, kwargs)):
        # A single number on the CPU may be combined with a tensor on the GPU.
        if isinstance(x, Tensor) and not isinstance(x, FakeCuda) and x.device.type == "cpu" and x.ndim:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} gets cuda:0 and cpu")
    kinds = {x.dtype for x in args if isinstance(x, Tensor)} if func in PRODUCTS else ()
    if len(kinds) > 1:
        raise RuntimeError(f"The types of all tensors should be the same, but {func} gets {', '.join(map(str, kinds))}")


def _nonzero(x: Tensor) -> Tensor:
    return torch.empty(x.numel(), x.ndim, dtype=torch.int64, device=META)


def _masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return torch.empty(torch.broadcast_shapes(x.shape, mask.shape).numel(), dtype=x.dtype, device=META)


def _unique(x: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.empty(x.numel(), dtype=x.dtype, device=META)
    return values, torch.empty(x.shape, dtype=torch.int64, device=META), torch.empty_like(values, dtype=torch.int64)


UNKNOWN_SIZES: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten._unique2.default: _unique,
}
"""Operators whose numbers determine the size of the result. The fake result has the largest size that is possible."""


def _positions(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replace masks with positions, as many as possible."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            positions += [torch.empty(index.numel(), dtype=torch.int64, device=META)] * index.ndim
        else:
            positions.append(index)
    return positions


@no_type_check
class _Operators(TorchDispatchMode):
    """Sends operators that make tensors on the fake GPU, or move them there, to `_compute`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF or any(isinstance(x, FakeCuda) or _is_fake_device(x) for x in leaves((args, kwargs))):
            return _compute(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@no_type_check
def _is_fake_device(x: Any) -> bool:
    """Return whether C++ code means the fake GPU by this device, or by this tensor that it just made there."""
    device = x.device if isinstance(x, Tensor) else x
    return isinstance(device, torch.device) and device.type in ("meta", "cuda")


@no_type_check
class _Functions(TorchFunctionMode):
    """Gives C++ code the name of the device that it needs, and selects the kernel of attention."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tuple(_named(x) for x in args), {name: _named(x) for name, x in (kwargs or {}).items()}
        if func is F.scaled_dot_product_attention and isinstance(args[0], FakeCuda):
            return _attention(*args, **kwargs)
        if func is F.rms_norm and isinstance(args[0], FakeCuda) and kwargs.get("weight") is not None:
            return FusedNorm.apply(args[0], kwargs["weight"])
        if func is Tensor.new_tensor and isinstance(args[0], FakeCuda):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs, "device": CPU}).to(META)
        if func is torch.tensor and kwargs.get("device") == META:
            return torch.tensor(*args, **{**kwargs, "device": CPU}).to(META)
        if func is Tensor.cuda:
            return args[0].to(META)
        if func is Tensor.tolist and isinstance(args[0], FakeCuda):
            return args[0].cpu().tolist()
        if func is Tensor.pin_memory:
            return args[0]
        with _seen_by_autocast(torch.is_autocast_enabled("cuda") and func is not Tensor.to):
            return func(*args, **kwargs)


@no_type_check
def _named(x: Any) -> Any:
    """Return a device as C++ code may see it."""
    is_cuda = x.startswith("cuda") if isinstance(x, str) else isinstance(x, torch.device) and x.type == "cuda"
    return META if is_cuda else x


@no_type_check
@contextmanager
def _seen_by_autocast(seen: bool) -> Iterator[None]:
    before, FakeCuda.seen_by_autocast = FakeCuda.seen_by_autocast, seen
    try:
        yield
    finally:
        FakeCuda.seen_by_autocast = before


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention with the kernel that torch selects on a GPU of compute capability 8.0 or higher.

    The rules are those of `sdp_utils.cpp`. Flash attention needs 16-bit numbers, no mask and heads of at most 256
    channels. Memory-efficient attention needs as many heads of keys as of queries, and heads of a multiple of 8
    channels in 16 bits or 4 channels in 32 bits. Both need channels that are adjacent in memory. Everything else is
    computed with all scores in memory.
    """
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
        attn_mask = attn_mask.to(half) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"Expected query, key and value to have one type: {query.dtype}, {key.dtype}, {value.dtype}")
    width, half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    adjacent = all(x.stride(-1) == 1 for x in (query, key, value)) and query.ndim == 4
    square = query.shape[-2] == key.shape[-2] or not is_causal
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    with torch.autocast("cuda", enabled=False):
        if half and attn_mask is None and width <= 256 and adjacent and square:
            padded = [F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value)]
            scale = width**-0.5 if scale is None else scale
            out = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=scale)[0]
            return out[..., :width]
        if adjacent and width % (8 if half else 4) == 0 and query.shape[1] == key.shape[1]:
            if attn_mask is not None:
                if attn_mask.shape[-1] % 8:
                    attn_mask = F.pad(attn_mask, (0, -attn_mask.shape[-1] % 8))[..., : key.shape[-2]]
                attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
            keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale
            )[0]
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]


class FusedNorm(torch.autograd.Function):
    """The kernels and the memory of RMS norm on a GPU. Torch's builds without CUDA take it apart into six kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Keep the input alone."""
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the right shapes."""
        x, weight = ctx.saved_tensors
        return (gradients[0] * weight).to(x.dtype), gradients[0].flatten(0, -2).sum(0).to(weight.dtype)


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


_CALLS: dict[str, Any] = {
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
def _driver() -> Iterator[None]:
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


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Provide a fake GPU as the device "cuda" of this thread, even if there is a real one; yields its device.

    Autocast, autograd, optimizers and activation checkpointing work as on a GPU. Two devices in one operator, or two
    types where a GPU needs one, are errors. Attention uses the same kernel as on a GPU (flash, memory-efficient, or
    with all scores in memory), so that the sizes and the number of tensors are those of a GPU.
    """
    overwrite = modules.get_overwrite_module_params_on_conversion()
    supported = [*foreach._get_foreach_kernels_supported_devices(), META.type]
    with ExitStack() as stack:
        for name, call in _CALLS.items():
            stack.enter_context(_replaced(torch.cuda, name, call))
        stack.enter_context(_replaced(foreach, "_foreach_supported_types", [Tensor, FakeCuda]))
        stack.enter_context(_replaced(foreach, "_get_foreach_kernels_supported_devices", lambda: supported))
        stack.enter_context(_driver())
        stack.enter_context(_replaced(torch.autograd, "_engine_run_backward", _run_backward))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_Operators())
        stack.enter_context(_Functions())
        stack.callback(modules.set_overwrite_module_params_on_conversion, overwrite)
        modules.set_overwrite_module_params_on_conversion(True)  # parameters that move here become `FakeCuda`
        yield CUDA


def _run_backward(*arguments: Any, **named: Any) -> Any:
    """Run a backward pass; the blocks that are recomputed in it need the modes of the forward pass."""
    with _seen_by_autocast(False), _Functions():
        return run_backward(*arguments, **named)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
