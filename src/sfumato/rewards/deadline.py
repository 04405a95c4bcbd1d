"""A time limit for calls of code that may never return."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import torch

ABANDONED: list[Future[Any]] = []
"""Calls that were given up."""


class OverdueError(Exception):
    """A call did not return in time."""


class Deadline:
    """A time limit for calls, which run on one daemon thread: a thread cannot be stopped, but it can be abandoned."""

    def __init__(self, seconds: float, begun: Callable[[], None] = lambda: None):
        """Start the thread.

        Args:
            seconds: longest duration of a call.
            begun: called before every call, to tell other processes that this one is alive.
        """
        self.seconds, self.begun = seconds, begun
        self._last: Future[Any] | None = None
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._calls,), name="sfumato-reward", daemon=True).start()
        weakref.finalize(self, self._calls.put, None)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function without gradients, on the caller's CUDA stream, and return its result or raise its error.

        Raises:
            OverdueError: the call did not return in time, or an earlier one still has not.
        """
        self.begun()
        if self._last is not None and not self._last.done():
            raise OverdueError
        self._last = future = Future()
        # Devices and streams are per thread.
        stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

        def run() -> None:
            try:
                with torch.no_grad(), contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                    future.set_result(function(*arguments))
            except BaseException as error:  # it is raised again in the caller's thread
                future.set_exception(error)

        self._calls.put(run)
        try:
            wait([future], timeout=self.seconds)
        finally:
            if not future.done():
                ABANDONED.append(future)
        if not future.done():
            raise OverdueError
        return future.result()


def is_stuck() -> bool:
    """Return whether an abandoned call is still running, so that the interpreter might not be able to shut down."""
    return not all(call.done() for call in ABANDONED)


def _work(calls: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (run := calls.get()) is not None:
        run()
        del run  # it holds the images
