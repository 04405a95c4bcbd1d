"""CUDA tensors without a GPU: shapes, types and devices as on a GPU, but no memory and no numbers.

Inside `fake_cuda()`, tensors on the device "cuda" are `FakeCuda`. Tensors on the CPU stay real, so a program reads its
files as usual, and what it would compute on the GPU costs almost nothing. Numbers that come back from the fake GPU are
zeros.

All of this runs for every operator. `no_type_check` keeps the type checks of tests away, which would take longer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import torch
import torch.__future__ as modules
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils as foreach
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.engine.fake_driver import CALLS, driver
from sfumato.engine.fake_kernels import FusedNorm, attention

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
            return attention(*args, **kwargs)
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
        for name, call in CALLS.items():
            stack.enter_context(_replaced(torch.cuda, name, call))
        stack.enter_context(_replaced(foreach, "_foreach_supported_types", [Tensor, FakeCuda]))
        stack.enter_context(_replaced(foreach, "_get_foreach_kernels_supported_devices", lambda: supported))
        stack.enter_context(driver())
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
