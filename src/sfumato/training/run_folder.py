"""The folder of a run, the settings that the run was started with, and a record of its starts."""

import importlib.metadata
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.files import claim_folder, step_of, write_text
from sfumato.training.hooks.checkpoints import checkpoints_in
from sfumato.training.train_config import TrainConfig, from_json, to_json, upgraded

FREE = {
    "steps", "stop_after_seconds", "save_every", "sample_every", "held_out_every", "keep_checkpoints", "eval_images",
    "sample_batch_size", "device", "reward_device", "reward_timeout", "overlap_rewards", "engine.micro_batch_size",
    "engine.activation_checkpointing", "engine.compile", "engine.cuda_graphs", "engine.offload_reference",
    "engine.sharding", "engine.gather_for_rollouts", "track",
}  # fmt: skip
"""Settings that may change when a run is resumed: they do not change what it learns."""


def read_run_config(path: Path) -> TrainConfig:
    """Return the settings that the run in a folder was started with.

    Raises:
        UserError: the folder is not that of a run, or has settings of a newer version.
    """
    file = path / "config.json"
    try:
        return from_json(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"resume: {path} has no config.json; give the folder of a run") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, TypeError, KeyError) as error:
        raise UserError(f"resume: {file} is not that of a training run ({error}); give the folder of a run") from error


def check_run_folder(path: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse to overwrite another run, or to resume with other settings.

    Raises:
        UserError: the folder belongs to another run, or a setting differs; the message says what to do.
    """
    saved = claim_folder("run_dir", path, "config.json", resume=resume)
    if saved is None:
        return
    check_same(saved, config)
    done = [step_of(checkpoint) for checkpoint in checkpoints_in(path / "checkpoints")]
    if done and config.steps < done[-1]:
        raise UserError(f"steps: {config.steps} is fewer than the {done[-1]} steps already done; give at least as many")


def check_same(saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse settings that differ from those that a run was started with.

    Raises:
        UserError: the message names the first setting that differs.
    """
    before, now = flat(upgraded(saved)), flat(json.loads(json.dumps(to_json(config))))
    # Settings that are newer than the version that started the run are not compared.
    for name in sorted(now.keys() & before.keys() - FREE):
        if before[name] != now[name]:
            raise UserError(
                f"{name}: {now[name]!r} differs from the run's {before[name]!r}; leave it as in the run's config.json, "
                "or start another run"
            )


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings by name; those of the policy, the objective and the engine have names with a dot."""
    settings = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and name != "reward"
        settings |= {f"{name}.{key}": part for key, part in value.items()} if nested else {name: value}
    return settings


def create_run_folder(path: Path, config: TrainConfig) -> None:
    """Create the folder and write the resolved config."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_text(path / "config.json", json.dumps(to_json(config), indent=1) + "\n")


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Record this start in `run.json`: version, commit, command line, host, time, and the seconds that the block took.

    The seconds are None while the block runs, and stay so if the process is killed.
    """
    file, began = path / "run.json", time.monotonic()
    starts = json.loads(file.read_text()) if file.exists() else []
    start = {
        "version": importlib.metadata.version("sfumato"),
        "commit": commit_of(Path(__file__).parents[3]),
        "command": shlex.join(sys.orig_argv),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
    }

    def write() -> None:
        write_text(file, json.dumps([*starts, start], indent=1, ensure_ascii=False) + "\n")

    write()
    try:
        yield
    finally:
        start["seconds"] = round(time.monotonic() - began, 1)
        write()


def commit_of(folder: Path) -> str | None:
    """Return the commit of a git repository, with "+" if files that it knows have changed since; None if the folder is
    not the top of one, as for an installed package, or git is missing."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
