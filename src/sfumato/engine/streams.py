"""Work of another thread on a CUDA stream of its own, so that the GPU can run it next to the work of this thread."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


def submit_beside(pool: ThreadPoolExecutor, device: torch.device) -> Callable[..., Future[Any]]:
    """Return the pool's `submit`. On a GPU, functions then run on a CUDA stream of their own.

    On this stream, a function begins after all work that the submitting thread has queued so far, such as the images
    that it reads. Its result is ready once the GPU has computed it. The arguments stay alive until then.

    Args:
        pool: pool of one thread.
        device: device of the work; on the CPU, the result is `pool.submit` itself.
    """
    if device.type != "cuda":
        return pool.submit
    stream = side_stream(device)

    def run(queued: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        with torch.cuda.stream(stream):  # both the stream and the current device are properties of a thread
            stream.wait_event(queued)
            result = function(*arguments)
            # The consumer may read the result, and the memory of the images may be used again, only after this.
            stream.synchronize()
        return result

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return pool.submit(run, torch.cuda.current_stream(device).record_event(), function, *arguments)

    return submit


@functools.cache
def side_stream(device: torch.device) -> Any:
    """Return the second stream of a device, always the same one, because freed memory stays with its stream."""
    return torch.cuda.Stream(device)
