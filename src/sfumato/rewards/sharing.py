"""Share results that several rewards need, so that they are computed once per batch, and the way they are computed."""

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run a large network without gradients: in float32 on the CPU, with bfloat16 products and convolutions on a GPU.

    On a GPU, matrix products, convolutions and attention return bfloat16, while weights, norms and the residual stream
    stay float32. Heads that turn features into scores belong outside, in float32, so that their rounding does not add
    to the noise.
    """
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield


class OncePerBatch(Generic[Result]):
    """A cache of the last result for a batch of images, valid as long as these images exist and are unchanged."""

    def __init__(self):
        self._lock = threading.Lock()
        self._images: Callable[[], Tensor | None] = lambda: None
        self._key: Hashable = None
        self._result: Result | None = None

    def __call__(self, images: Tensor, compute: Callable[[], Result], key: Hashable = None) -> Result:
        """Return the result for these images and this key; it is computed unless it is cached."""
        with self._lock:
            key = (_version(images), key)
            if self._result is None or self._images() is not images or self._key != key:
                self._result = compute()
                self._images, self._key = weakref.ref(images), key
            return self._result


class Lent:
    """A copy of a batch for rewards, which may write to it. All share it until one changes it; then it is renewed."""

    def __init__(self):
        self._held: OncePerBatch[list[tuple[Tensor, int | None]]] = OncePerBatch()

    def __call__(self, images: Tensor) -> Tensor:
        """Return a copy of the images that equals them."""
        held = self._held(images, lambda: [_copy(images)])
        copy, version = held[0]
        # On the CPU, NumPy writes without increasing the version counter. On a GPU, a comparison would wait for it.
        changed = copy._version != version if copy.is_cuda and version is not None else not torch.equal(copy, images)
        if changed or copy.requires_grad:
            held[0] = _copy(images)
        return held[0][0]


def _copy(images: Tensor) -> tuple[Tensor, int | None]:
    copy = images.clone()
    return copy, _version(copy)


def _version(images: Tensor) -> int | None:
    # Tensors created in inference mode cannot be changed in place outside it and have no version counter.
    return None if images.is_inference() else images._version
