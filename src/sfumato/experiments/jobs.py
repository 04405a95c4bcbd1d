"""Commands in parallel, each a process of its own."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.interrupt import catch_interrupt

POLL = 0.2
"""Seconds between looks at the processes."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Job:
    """A command, and the file for what it prints."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Done:
    """How jobs ended."""

    failed: Mapping[str, str]
    """last line of the log of each job that failed, by name"""
    interrupted: bool
    """whether Ctrl-C or SIGTERM ended them"""


def run_jobs(jobs: Sequence[Job], workers: int, say: Callable[[str], object]) -> Done:
    """Run all jobs, at most `workers` at a time, with one thread each; after a failure the others go on.

    The first Ctrl-C or SIGTERM is passed on, so that runs save and stop, and no further job starts; a second one ends
    all at once. What is said: every job that ends, how many have, and about how long the rest takes.
    """
    waiting, running, durations, failed = list(jobs), {}, [], {}
    with catch_interrupt() as interrupt:
        try:
            while running or (waiting and not interrupt):
                while waiting and len(running) < workers and not interrupt:
                    job = waiting.pop(0)
                    running[_started(job)] = (job, time.monotonic())
                time.sleep(POLL)
                for process in [process for process in running if process.poll() is not None]:
                    job, began = running.pop(process)
                    durations.append(time.monotonic() - began)
                    ended = "done"
                    if process.returncode and not interrupt:
                        failed[job.name] = ended = _last_line(job.log)
                    mean = sum(durations) / len(durations)
                    left = mean * (len(waiting) + len(running) / 2) / workers / 60
                    count = f"{len(durations)} of {len(jobs)}"
                    say(f"{count}: {job.name}: {ended} ({durations[-1]:.0f} s); about {left:.0f} min left")
                if interrupt:
                    break
        finally:
            for process in running:
                process.terminate()  # a run saves and stops
            for process in running:
                process.wait()
        return Done(failed, bool(interrupt))


def _started(job: Job) -> subprocess.Popen[bytes]:
    """Start a process. Ctrl-C in the terminal does not reach it, only what this process passes on."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD},
            start_new_session=True,
        )  # fmt: skip


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"
