"""Resuming a run: from its own settings, beside a user's files, after damage, and while another process uses it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import environment
from errors import bad_input
from rich.console import Console
from run_folders import assert_same_run, make_version_0_1, metrics_of
from tiny import tiny_config

from sfumato.cli.main import main, parse
from sfumato.cli.train import Train
from sfumato.families.library import find_model
from sfumato.files import HOLDER, LOCK
from sfumato.objectives import GDPO
from sfumato.training.run_folder import FREE, commit_of, read_run_config
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig, from_json, to_json

QUIET = Console(quiet=True)


def config_of(model: Path, **changes: Any) -> TrainConfig:
    return tiny_config(model, **{"steps": 4, "save_every": 1, "sample_every": 2, **changes})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps without interruption; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(config_of(tiny_model), folder, console=QUIET)
    return folder


@pytest.fixture(scope="module")
def half(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two steps of the same run, with two checkpoints; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    assert train(config_of(tiny_model, steps=2), folder, console=QUIET)
    return folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_user_puts_beside_checkpoints_stays(run: Path, whole: Path, tiny_model: Path, tmp_path: Path):
    folder = run / "checkpoints"
    for copy in ("step-000001-good", "step-000001 (copy)", "step-9", "step-best", "step-0000007", "step-000001.old"):
        shutil.copytree(folder / "step-000001", folder / copy)
    (folder / "step-000003.tar").write_bytes(b"archive")
    (folder / "step-000009").mkdir()  # exact name, but no checkpoint
    (folder / "step-000008").write_text("a file")
    shutil.move(folder / "step-000001", tmp_path / "elsewhere")
    (folder / "step-000001").symlink_to(tmp_path / "elsewhere")
    foreign = names(folder) - {"step-000002"}
    assert find_model(run) == folder / "step-000002/model"
    assert train(config_of(tiny_model), run, resume=True, console=QUIET)
    assert names(folder) == foreign | {"step-000003", "step-000004"}  # two of its own, none of the user's
    assert (tmp_path / "elsewhere/state.pt").is_file()
    assert find_model(run) == folder / "step-000004/model"
    assert_same_run(run, whole, 4)


def test_what_has_the_name_of_the_next_checkpoint_is_set_aside(run: Path, tiny_model: Path):
    folder = run / "checkpoints"
    (folder / "step-000003").mkdir()
    (folder / "step-000003/notes.txt").write_text("mine")
    (folder / "step-000004").symlink_to(folder / "step-000001")
    assert train(config_of(tiny_model), run, resume=True, console=QUIET)
    assert names(folder) == {"step-000003", "step-000003-aside-1", "step-000004", "step-000004-aside-1"}
    assert (folder / "step-000003-aside-1/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["folder alone", "recipe"])
def test_resumed_with_the_runs_own_settings(run: Path, whole: Path, tiny_model: Path, form: str):
    if form == "folder alone":
        assert main(["train", "--resume", str(run), "--steps", "4"]) == 0
    else:
        config = config_of(tiny_model)
        assert train(config, run, resume=True, console=QUIET)
    assert_same_run(run, whole, 4)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (run, whole)]
    assert configs[0] == configs[1]


def test_options_beside_the_folder(run: Path, capsys: pytest.CaptureFixture[str]):
    saved = read_run_config(run)
    for arguments in (["--resume", str(run), "--steps", "9"], ["--steps=9", f"--resume={run}"]):
        command = parse(["train", *arguments])
        assert isinstance(command, Train)
        assert command == Train(config=replace(saved, steps=9), run_dir=run, resume=True)
    with bad_input("seed", "1", "0"):
        train(replace(saved, seed=1), run, resume=True, console=QUIET)
    refused = {
        ("--resume", str(run), "--seed", "1"): "seed",
        ("--resume", str(run), "--objective", "gdpo"): "objective.name",
        ("--resume", str(run), "--steps", "1"): "steps",
        ("--resume", str(run / "nowhere")): "resume",
        ("--resume", str(run / "checkpoints/step-000002/model")): "resume",
        ("--resume",): "recipe",
        ("--steps", "3"): "recipe",
    }
    for arguments, field in refused.items():
        assert main(["train", *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"sfumato: {field}: "), lines[0]


def test_a_run_of_version_0_1_resumes_from_its_folder(run: Path, whole: Path):
    make_version_0_1(run)
    assert main(["train", "--resume", str(run), "--steps", "4"]) == 0
    assert_same_run(run, whole, 4)


def test_settings_survive_their_file(tiny_model: Path):
    config = tiny_config(
        tiny_model, guidance=(1.0, 2.0), lora_targets=("qkv",), held_out=("dark",), classes=("ant",), objective=GDPO()
    )
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(stored) == config
    with bad_input("patience"):
        from_json({**stored, "patience": 3})
    with bad_input("bits"):
        from_json({**stored, "engine": {**stored["engine"], "bits": 3}})


def test_settings_that_may_change(run: Path, whole: Path, tiny_model: Path):
    """They change where the run computes and what it writes, but not what it learns."""
    stored = to_json(config_of(tiny_model))
    known = {*stored, *(f"engine.{name}" for name in stored["engine"])}
    assert known >= FREE
    config = config_of(
        tiny_model, save_every=3, sample_every=1, held_out_every=7, keep_checkpoints=5, eval_images=4,
        sample_batch_size=4, device="auto", reward_device="cpu", reward_timeout=9.0, overlap_rewards=True,
        micro_batch_size=2, activation_checkpointing=1, cuda_graphs=False, sharding="full", gather_for_rollouts=False,
    )  # fmt: skip
    assert train(config, run, resume=True, console=QUIET)
    for line, other in zip(metrics_of(run), metrics_of(whole), strict=True):
        assert line["reward_mean"] == pytest.approx(other["reward_mean"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert names(run / "checkpoints") == {f"step-{step:06d}" for step in range(1, 5)}
    assert json.loads((run / "config.json").read_text()) == json.loads(json.dumps(to_json(config)))


@pytest.mark.parametrize("moment", ["between", "while it runs"])
def test_removed_pictures_stop_no_run(run: Path, whole: Path, tiny_model: Path, tmp_path: Path, moment: str):
    config = config_of(tiny_model, sample_every=1)
    if moment == "between":
        shutil.rmtree(run / "samples")
        assert train(config, run, resume=True, console=QUIET)
        assert names(run / "samples") == {"step-000002.png", "step-000003.png", "step-000004.png"}
    else:
        (tmp_path / "r.py").write_text(
            f"import shutil\n\ndef remove(images, words):\n    shutil.rmtree({str(run)!r} + '/samples', True)\n"
            "    return images.mean((1, 2, 3))\n"
        )
        shutil.rmtree(run)
        assert train(replace(config, reward={f"{tmp_path}/r.py:remove": 1.0}), run, console=QUIET)
        assert names(run / "samples") == {"step-000004.png"}
    assert metrics_of(run)[-1]["step"] == 4


def test_a_damaged_checkpoint_is_deleted_and_the_previous_one_resumed(run: Path, whole: Path, tiny_model: Path):
    newest, config = run / "checkpoints/step-000002", config_of(tiny_model)
    for file in ("state.pt", "engine.pt", "model/transformer.safetensors"):
        content = (newest / file).read_bytes()
        (newest / file).write_bytes(content[: len(content) // 2])
        with bad_input("checkpoint", f"{newest} is damaged", file, "delete this folder", "step-000001"):
            train(config, run, resume=True, console=QUIET)
        (newest / file).write_bytes(content)
    shutil.rmtree(newest)
    assert train(config, run, resume=True, console=QUIET)
    assert_same_run(run, whole, 4)


@pytest.mark.parametrize("file", ["state.pt", "model/transformer.safetensors", "model/config.json"])
def test_a_checkpoint_without_a_file_does_not_count(run: Path, whole: Path, tiny_model: Path, file: str):
    (run / "checkpoints/step-000002" / file).unlink()
    assert train(config_of(tiny_model), run, resume=True, console=QUIET)
    assert_same_run(run, whole, 4)


def test_a_checkpoint_without_an_optimizer_is_named(run: Path, tiny_model: Path):
    newest, config = run / "checkpoints/step-000002", config_of(tiny_model, steps=3)
    (newest / "engine.pt").unlink()
    with bad_input("checkpoint", str(newest), "engine.pt", "delete this folder", "step-000001"):
        train(config, run, resume=True, console=QUIET)
    shutil.rmtree(newest)
    (run / "checkpoints/step-000001/state.pt").write_bytes(b"x")
    with bad_input("checkpoint", "step-000001 is damaged", "delete this folder", "first step"):
        train(config, run, resume=True, console=QUIET)
    shutil.rmtree(run / "checkpoints/step-000001")
    assert train(config, run, resume=True, console=QUIET)
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3]


def test_starts_are_recorded(run: Path, tiny_model: Path):
    assert train(config_of(tiny_model, steps=3), run, resume=True, console=QUIET)
    starts = json.loads((run / "run.json").read_text())
    assert len(starts) == 2
    for start in starts:
        assert start.keys() == {"version", "commit", "command", "host", "started", "seconds"}
        assert start["host"] == socket.gethostname()
        assert 0 < start["seconds"] < 600
        assert start["started"].endswith("+00:00")
        assert sys.orig_argv[0] in start["command"]
    assert starts[0]["started"] <= starts[1]["started"]


WAITS = """
import pathlib, time

def waits(images, words):
    pathlib.Path({folder!r}, "waiting").touch()
    while not pathlib.Path({folder!r}, "go").exists():
        time.sleep(0.05)
    return images.mean((1, 2, 3))
"""


def test_a_second_start_is_refused_and_a_kill_frees_the_folder(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "r.py").write_text(WAITS.format(folder=str(tmp_path)))
    run, config = tmp_path / "run", config_of(tiny_model, steps=1, reward={f"{tmp_path}/r.py:waits": 1.0})
    options = ["--run-dir", str(run), "--model", str(tiny_model), "--reward", f"{tmp_path}/r.py:waits", "1"]
    command = [sys.executable, "-m", "sfumato", "train", "emoji-dark", *options, "--steps", "1"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None
        assert main(["train", "emoji-dark", *options]) == 2
        message = capsys.readouterr().err
        assert message.startswith(
            f"sfumato: run_dir: {run} is in use by process {process.pid} on {socket.gethostname()};"
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert names(run) == {LOCK, HOLDER}
    (tmp_path / "go").touch()
    assert train(config, run, console=QUIET)
    assert not names(run) & {LOCK, HOLDER}


def test_the_commit_of_a_clone(tmp_path: Path):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert commit_of(tmp_path) is None
    git("init", "-q")
    assert commit_of(tmp_path) is None  # without a commit
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    (tmp_path / "unknown").write_text("")
    assert commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == f"{commit}+"
