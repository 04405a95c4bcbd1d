"""Computing once per batch what several rewards need."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class OncePerBatch(Generic[Result]):
    """Remembers what was last computed of a batch of images, for as long as these images live unchanged."""

    def __init__(self):
        self._lock = threading.Lock()
        self._images: Callable[[], Tensor | None] = lambda: None
        self._key: Hashable = None
        self._result: Result | None = None

    def __call__(self, images: Tensor, compute: Callable[[], Result], key: Hashable = None) -> Result:
        """The result for these images and this key, computed unless it is the one remembered."""
        with self._lock:
            key = (images._version, key)
            if self._result is None or self._images() is not images or self._key != key:
                self._result = compute()
                self._images, self._key = weakref.ref(images), key
            return self._result
