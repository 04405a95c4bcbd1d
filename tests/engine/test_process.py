"""Processes: division of the work, devices, and supervision."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from errors import bad_input

from sfumato.engine import watch
from sfumato.engine.cause import cause_of, record_cause, status_of
from sfumato.engine.process import Process, find_device, join
from sfumato.engine.watch import Watch
from sfumato.errors import SharedError, UserError

CPU = torch.device("cpu")


def test_shares_cover_everything_in_order():
    shares = [Process(rank=rank, count=3, device=CPU).share(12) for rank in range(3)]
    assert [list(range(12))[share] for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("total", [1, 4, 5, 12])
def test_padded_shares_are_of_one_size_and_begin_with_everything(total: int, count: int):
    shares = [Process(rank=rank, count=count, device=CPU).padded_share(total).tolist() for rank in range(count)]
    assert len({len(share) for share in shares}) == 1
    joined = [position for share in shares for position in share]
    assert joined[:total] == list(range(total))
    assert set(joined[total:]) <= {total - 1}
    assert len(joined) < total + count


def test_one_process_alone():
    process = join("cpu")
    assert (process.rank, process.count, process.is_main) == (0, 1, True)
    tensor = torch.arange(3)
    assert process.gather(tensor) is tensor
    assert process.any(True)
    assert not process.any(False)
    assert not Process(rank=1, count=2, device=CPU).is_main


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_devices_that_are_not_there(device: str):
    for find in (join, find_device):
        with bad_input("device", repr(device), "auto", "cpu"):
            find(device)


def test_one_process_raises_its_own_error():
    with bad_input("steps", "0"), join("cpu").together():
        raise UserError("steps: 0 is too small; give more")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """Return the launcher's store. Signs of life are read as often as the test says, and nothing ends the test."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(watch.threading.Thread, "start", lambda thread: None)
    return store


def failure_after(store: dist.TCPStore, beats: int, signs: dict[int, list[str]]) -> list[object] | None:
    """Return the failure that rank 0 of three reports at exactly this beat; `signs` has those of each rank, the last
    of which is repeated."""
    supervisor = Watch(0, 3, patience=5.0, prefix="test")
    keys = dist.PrefixStore("test/watch", store)
    for beat in range(beats):
        assert not keys.check([watch.FAILURE]), beat
        for rank, texts in signs.items():
            keys.set(f"sign/{rank}", texts[min(beat, len(texts) - 1)])
        supervisor._look()
    return json.loads(keys.get(watch.FAILURE)) if keys.check([watch.FAILURE]) else None


def lives(met: int, done: int | None = None) -> list[str]:
    """Return the signs of a process that lives; it does more and more work, or none after `done`."""
    return [f"{beat} {met} {beat if done is None else done}" for beat in range(100)]


def test_a_silent_process_is_reported(store: dist.TCPStore):
    # Its first sign is new; 21 seconds later, it has been silent for more than 20.
    cause = "rank 2: gave no sign of life for 20 s: killed, stopped, or its machine is unreachable"
    assert failure_after(store, 22, {0: lives(1), 1: lives(1), 2: ["5 1 1"]}) == [cause, 1]


def test_a_process_that_keeps_others_waiting_is_reported(store: dist.TCPStore):
    cause = "rank 1: began no work for 5 s (reward_timeout + 600 s)"
    assert failure_after(store, 7, {0: lives(4, 9), 1: lives(3, 7), 2: lives(4, 9)}) == [cause, 1]


def test_a_process_that_never_starts_is_reported(store: dist.TCPStore):
    cause = "rank 2: began no work for 5 s (reward_timeout + 600 s)"
    assert failure_after(store, 6, {0: lives(1, 1), 1: lives(1, 1)}) == [cause, 1]


@pytest.mark.parametrize(
    "signs",
    [
        {0: lives(4, 9), 1: lives(3), 2: lives(4, 9)},  # rank 1 is slow, but works
        {0: lives(3, 7), 1: lives(3), 2: lives(3, 7)},  # the engine waits for rank 1 in an exchange of its own
    ],
)
def test_waiting_for_a_process_that_works_is_no_failure(store: dist.TCPStore, signs: dict[int, list[str]]):
    assert failure_after(store, 90, signs) is None


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (UserError("steps: 0\n is too small"), 2, "rank 1: steps: 0 is too small"),
        (SharedError("step 3: rank 0: reward 'x' failed"), 2, "step 3: rank 0: reward 'x' failed"),
        (RuntimeError("out of memory\nat line 3"), 1, "rank 1: RuntimeError: out of memory"),
        (KeyboardInterrupt(), 130, "rank 1: KeyboardInterrupt"),
    ],
)
def test_causes(error: BaseException, status: int, cause: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert (status_of(error), cause_of(error)) == (status, cause)
    record_cause(cause)
    record_cause("a consequence")
    written = json.loads((tmp_path / "error.json").read_text())["message"]
    assert written["message"] == written["extraInfo"]["py_callstack"] == cause
