"""Work of another thread on a CUDA stream of its own."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from sfumato.engine.streams import side_stream, submit_beside

GPU = torch.device("cuda:1")


def test_on_the_cpu_it_is_the_pools_own():
    with ThreadPoolExecutor(max_workers=1) as pool:
        assert submit_beside(pool, torch.device("cpu")) == pool.submit


def test_order_of_the_work_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Functions wait for what was queued when they were submitted, run on the side stream of their own thread, and
    have a result only once the stream is done."""
    log: list[str] = []
    current = threading.local()

    class Stream:
        def __init__(self, device: torch.device):
            self.name = f"side of {device}"

        def wait_event(self, event: str) -> None:
            log.append(f"{self.name} waits for {event}")

        def synchronize(self) -> None:
            log.append(f"{self.name} is done")

    class Main:
        events = 0

        def record_event(self) -> str:
            assert threading.current_thread() is threading.main_thread()
            self.events += 1
            return f"event {self.events}"

    @contextmanager
    def use(stream: Stream) -> Iterator[None]:
        current.name = stream.name
        yield
        current.name = "main"

    main = Main()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    side_stream.cache_clear()

    def score(number: int) -> int:
        log.append(f"{number} on {current.name}")
        return number + 1

    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            submit = submit_beside(pool, GPU)
            assert [future.result() for future in [submit(score, 1), submit(score, 2)]] == [2, 3]
            assert side_stream(GPU) is side_stream(GPU)
            failed = submit(divmod, 1, 0)
            assert isinstance(failed.exception(), ZeroDivisionError)
    finally:
        side_stream.cache_clear()
    assert log == [
        "side of cuda:1 waits for event 1", "1 on side of cuda:1", "side of cuda:1 is done",
        "side of cuda:1 waits for event 2", "2 on side of cuda:1", "side of cuda:1 is done",
        "side of cuda:1 waits for event 3",
    ]  # fmt: skip
