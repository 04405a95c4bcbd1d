"""A flag that Ctrl-C sets."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sfumato.notes import note


class Interrupt:
    """Flag that becomes true once Ctrl-C is pressed or SIGTERM is received."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the first signal sets the flag; a second one stops the program at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        note("stopping as soon as this step is done and saved; Ctrl-C again stops at once")


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Inside the block, let SIGINT and SIGTERM set a flag, so that a loop can finish its step and save."""
    interrupt = Interrupt()
    previous = {s: signal.signal(s, interrupt.request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
