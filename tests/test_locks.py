"""Folders in use: refusals, what a lock leaves behind, and locks of processes that are gone."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest
import torch
from errors import bad_input
from rich.console import Console

from sfumato import files
from sfumato.evaluation.runner import evaluate
from sfumato.evaluation.suites import SUITES
from sfumato.experiments import EXPERIMENTS
from sfumato.experiments.reproduction import reproduce
from sfumato.files import HOLDER, LOCK, OWN, claim_folder, locked, staging, step_folders
from sfumato.interrupt import Interrupt
from sfumato.pretraining.pretrain import pretrain
from sfumato.recipes import PRETRAIN_RECIPES


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every 0.05 s; a process without one for 0.5 s is dead."""
    monkeypatch.setattr(files, "BEAT", 0.05)
    monkeypatch.setattr(files, "PATIENCE", 0.5)


def test_a_held_folder_is_refused(tmp_path: Path):
    folder = tmp_path / "some/run"
    with locked("run_dir", folder):
        assert {path.name for path in folder.iterdir()} == {LOCK, HOLDER}
        assert claim_folder("run_dir", folder, "config.json", resume=False) is None  # it counts as empty
        with (
            bad_input("run_dir", str(folder), str(os.getpid()), socket.gethostname(), "--run-dir"),
            locked("run_dir", folder),
        ):
            pytest.fail("two hold the folder")
    assert list(tmp_path.iterdir()) == []  # as before
    with locked("run_dir", folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_folder_is_freed_by_an_error(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new"):
        with pytest.raises(KeyError), locked("out", folder):
            raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_holder_that_cannot_be_read(tmp_path: Path, content: str | None):
    with locked("out", tmp_path / "a"):
        (tmp_path / "a" / HOLDER).unlink()
        if content is not None:
            (tmp_path / "a" / HOLDER).write_text(content)
        with bad_input("out", "another process"), locked("out", tmp_path / "a"):
            pytest.fail("two hold the folder")


@pytest.mark.usefixtures("quick")
def test_a_process_on_another_machine(tmp_path: Path):
    """It holds the folder while it gives signs of life, even if the file system does not share its lock."""
    holder = tmp_path / HOLDER
    ended = threading.Event()
    for alive in (True, False):
        holder.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        if alive:
            thread = threading.Thread(target=files._beat, args=(holder, ended))
            thread.start()
            with bad_input("out", "process 7 on elsewhere"), locked("out", tmp_path):
                pytest.fail("two hold the folder")
            ended.set()
            thread.join()
            assert json.loads(holder.read_text())["pid"] == 7
        else:
            with locked("out", tmp_path):
                assert json.loads(holder.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_killed_process_on_this_machine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / HOLDER).write_text(json.dumps({"pid": 7, "host": socket.gethostname()}))
    monkeypatch.setattr(files, "_is_alive", lambda holder: pytest.fail("it waits"))
    with locked("out", tmp_path):
        pass


@pytest.mark.usefixtures("quick")
def test_signs_of_life(tmp_path: Path):
    with locked("out", tmp_path):
        assert files._is_alive(tmp_path / HOLDER)
        (tmp_path / HOLDER).unlink()
        assert not files._is_alive(tmp_path / HOLDER)


def test_steps_of_a_run(tmp_path: Path):
    own = ["step-000009", "step-000010", "step-999999", "step-1000000"]
    for name in [*own, "step-9", "step-0000011", "step-000010-good", "step-000010 ", "step-٠٠٠٠١٢", f"{OWN}x"]:
        (tmp_path / name).mkdir()
    (tmp_path / "step-000012").symlink_to(tmp_path / "step-000010")
    (tmp_path / "step-000013").touch()
    assert [path.name for path in step_folders(tmp_path)] == own
    assert step_folders(tmp_path / "nowhere") == []


def test_every_command_that_fills_a_folder_holds_it(tmp_path: Path):
    """A second start is refused before it reads anything, and changes nothing."""
    suite, experiment = SUITES["alignment"](), EXPERIMENTS["var-kl"].build("emoji", None)
    recipe, folder, cpu = PRETRAIN_RECIPES["emoji-var"].build(), tmp_path / "used", torch.device("cpu")
    with locked("out", folder):
        with bad_input("out", str(folder), str(os.getpid())):
            evaluate(suite, ["nothing"], folder, cpu, print)
        with bad_input("out", str(folder), str(os.getpid())):
            reproduce("used", experiment, tmp_path, tmp_path / "work", "cpu", Console(quiet=True))
        with bad_input("run_dir", str(folder), str(os.getpid())):
            pretrain(recipe, tmp_path, folder, resume=False, report=lambda *_: None, interrupt=Interrupt())
        assert {path.name for path in folder.iterdir()} == {LOCK, HOLDER}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_counts_as_empty_while_its_holder_is_written(tmp_path: Path):
    """Another process of the same run may look at that moment."""
    staging(tmp_path / HOLDER).touch()
    assert claim_folder("run_dir", tmp_path, "config.json", resume=False) is None
