"""Supervision among processes: if one fails, stops or hangs, all end soon, instead of waiting for it forever.

A thread of every process writes a sign of life to the launcher's store once a second, and looks there for failures.
The main process also looks at the signs of all others, and the others look at its own. Nothing relies on the backend
of the process group: NCCL does not notice that a peer is gone.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from sfumato.engine.cause import BUG, cause_of, record_cause, status_of

BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 20.0
"""Seconds without a sign of life after which a process counts as dead."""
WORK = 600.0
"""Seconds that a process may work, besides scoring images, while others wait: draw a part, write a checkpoint, ..."""
FAILURE = "failure"
"""Key in the store: rank and cause of the first failure, and the exit status for all."""


@dataclass
class Sign:
    """Latest sign of life of a process. Time is counted in this process's own beats, so that it need not be unsettled
    if it was itself stopped for a while."""

    tick: int = -1
    met: int = 0
    """number of exchanges with the other processes that it has begun"""
    done: int = 0
    """number of exchanges and other pieces of work that it has begun"""
    silent: int = 0
    """number of beats without a new sign"""
    idle: int = 0
    """number of beats without new work"""

    def update(self, text: str) -> None:
        """Read the sign as it is now."""
        tick, met, done = map(int, text.split())
        self.silent = 0 if tick != self.tick else self.silent + 1
        self.idle = 0 if done != self.done else self.idle + 1
        self.tick, self.met, self.done = tick, met, done


class Watch:
    """A daemon thread that ends this process as soon as another one has failed."""

    def __init__(self, rank: int, count: int, patience: float, prefix: str):
        """Connect to the launcher's store, whose address is in the environment, and start the thread.

        Args:
            rank: rank of this process.
            count: number of processes.
            patience: seconds that a process may keep the others waiting without beginning any work.
            prefix: beginning of all keys in the store.
        """
        self.rank, self.patience = rank, patience
        self._met = self._done = 0
        self._signs = {peer: Sign() for peer in (range(count) if rank == 0 else [0])}
        self._stopped = threading.Event()
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: that of the process group is busy while the main thread waits there.
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=SILENCE), wait_for_workers=False)
        self._store = dist.PrefixStore(f"{prefix}/watch", store)
        threading.Thread(target=self._run, name="sfumato-watch", daemon=True).start()

    def work(self) -> None:
        """Note that this process begins a piece of work."""
        self._done += 1

    def meet(self) -> None:
        """Note that this process begins an exchange with all others."""
        self._met += 1
        self._done += 1

    def fail(self, error: BaseException) -> None:
        """Tell all processes to end because of an exception in this one, which is left to end by itself."""
        if re.search("gloo|nccl", str(error), re.IGNORECASE):
            # An exchange broke, probably because another process has ended: its end is the cause to tell.
            time.sleep(SILENCE + 4 * BEAT)
        self.stop()
        with contextlib.suppress(RuntimeError):  # the store is gone
            self._report(cause_of(error), status_of(error))
        time.sleep(2 * BEAT)  # the store may end with this process, so others must first read it

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()

    def _run(self) -> None:
        tick = 0
        try:
            while not self._stopped.wait(BEAT):
                self._store.set(f"sign/{self.rank}", f"{tick} {self._met} {self._done}")
                if self._store.check([FAILURE]):
                    self._end(*json.loads(self._store.get(FAILURE)))
                self._look()
                tick += 1
        except RuntimeError as error:
            if not self._stopped.is_set():
                reason = str(error).partition("\n")[0]
                self._end(f"rank {self.rank}: the launcher of rank 0 is gone ({reason})", BUG)

    def _look(self) -> None:
        """Report the processes that no longer live, or keep the others waiting for too long."""
        for peer, sign in self._signs.items():
            if not self._store.check([f"sign/{peer}"]):  # it has not started yet
                sign.idle += 1
                continue
            sign.update(self._store.get(f"sign/{peer}").decode())
            if sign.silent * BEAT > SILENCE:
                reason = f"gave no sign of life for {SILENCE:g} s: killed, stopped, or its machine is unreachable"
                self._report(f"rank {peer}: {reason}", BUG)
        if self.rank:
            return
        # The others wait for those that have met the fewest times; these may in turn wait for one that still works.
        fewest = min(sign.met for sign in self._signs.values())
        last = [peer for peer, sign in self._signs.items() if sign.met == fewest]
        if all(self._signs[peer].idle * BEAT > self.patience for peer in last):
            reason = f"began no work for {self.patience:g} s (reward_timeout + {WORK:g} s)"
            self._report(f"rank {', '.join(map(str, last))}: {reason}", BUG)

    def _report(self, cause: str, status: int) -> None:
        """Write a failure to the store, unless there already is one."""
        self._store.compare_set(FAILURE, "", json.dumps([cause, status]))

    def _end(self, cause: str, status: int) -> None:
        """End this process: print the cause, and give it to the launcher."""
        record_cause(cause)
        show_cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a live view hides it
        print(f"{show_cursor}sfumato: {cause}", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(2 * BEAT)  # see `fail`
        os._exit(status)
