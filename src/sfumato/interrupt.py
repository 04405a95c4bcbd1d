"""A flag for Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C (or a polite kill) was asked for; true once it was."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the first request is noted; a second one stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Inside, SIGINT and SIGTERM set the flag, so that a loop can finish its step and save."""
    interrupt = Interrupt()
    previous = {s: signal.signal(s, interrupt.request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
