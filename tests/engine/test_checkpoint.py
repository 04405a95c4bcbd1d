"""Atomic writes, states, and the interrupt flag."""

import os
import signal
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_var

from sfumato.engine.checkpoint import fingerprint, load_state, save_state
from sfumato.files import write_atomically
from sfumato.interrupt import catch_interrupt


def write_files(text: str):
    def write(folder: Path) -> None:
        (folder / "sub").mkdir(parents=True)
        (folder / "a.txt").write_text(text)
        (folder / "sub/b.txt").write_text(text)

    return write


def test_folder_is_replaced(tmp_path: Path):
    for text in ("old", "new"):
        write_atomically(tmp_path / "x", write_files(text))
        assert (tmp_path / "x/a.txt").read_text() == text
        assert (tmp_path / "x/sub/b.txt").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_version(tmp_path: Path, error: BaseException):
    write_atomically(tmp_path / "x", write_files("old"))
    (tmp_path / "y").write_text("old")

    def half(path: Path) -> None:
        if path.name == ".x.tmp":
            write_files("new")(path)
        else:
            path.write_text("ne")
        raise error

    for name in ("x", "y"):
        with pytest.raises(type(error)):
            write_atomically(tmp_path / name, half)
    assert (tmp_path / "x/a.txt").read_text() == "old"
    assert (tmp_path / "x/sub/b.txt").read_text() == "old"
    assert (tmp_path / "y").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_nothing_is_visible_before_all_is_written(tmp_path: Path):
    def write(path: Path) -> None:
        path.write_text("half")
        assert not (tmp_path / "x").exists()

    write_atomically(tmp_path / "x", write)
    assert (tmp_path / "x").read_text() == "half"


def test_rests_of_a_killed_write_are_no_obstacle(tmp_path: Path):
    (tmp_path / ".x.tmp/sub").mkdir(parents=True)
    (tmp_path / ".x.tmp/stale.txt").write_text("stale")
    write_atomically(tmp_path / "x", write_files("new"))
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["a.txt", "sub"]


def test_state_round_trip(tmp_path: Path):
    rng = torch.Generator().manual_seed(3)
    state = {"step": 7, "rng": rng.get_state(), "nested": {"list": [torch.arange(3.0), 0.1, "text", None]}}
    save_state(tmp_path / "state.pt", state)
    read = load_state(tmp_path / "state.pt")
    assert read["step"] == 7
    assert torch.equal(read["rng"], state["rng"])
    assert torch.equal(read["nested"]["list"][0], torch.arange(3.0))
    assert read["nested"]["list"][1:] == [0.1, "text", None]


def test_missing_state(tmp_path: Path):
    with bad_input("checkpoint", str(tmp_path / "state.pt")):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_damaged_state(tmp_path: Path, share: float):
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with bad_input("checkpoint", str(path)):
        load_state(path)


class Bomb:
    """An object that creates a folder if it is unpickled carelessly."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_no_code_in_a_state_is_run(tmp_path: Path):
    torch.save({"step": 1, "bomb": Bomb(str(tmp_path / "boom"))}, tmp_path / "state.pt")
    with bad_input("checkpoint", str(tmp_path / "state.pt")):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_sets_the_flag_and_the_second_stops(signum: signal.Signals):
    before = signal.getsignal(signum)
    with catch_interrupt() as interrupt:
        assert not interrupt
        signal.raise_signal(signum)
        assert interrupt
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


def test_fingerprints_tell_networks_apart():
    network = tiny_var().network
    base = fingerprint(network)
    assert fingerprint(tiny_var().network) == base
    assert fingerprint(tiny_var(seed=1).network) != base
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1e-4)
    assert fingerprint(network) != base
