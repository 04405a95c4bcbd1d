"""Runs in processes of their own: killed, interrupted, and two at once."""

import signal
from pathlib import Path

import pytest
import torch
from command import run_module
from rich.console import Console
from run_folders import assert_same_run, checkpoint_of, metrics_of
from tiny import tiny_config
from torch import Tensor

from sfumato.training.config import GRPOConfig
from sfumato.training.train import train

REWARD = """
import os, pathlib, signal

calls = 0
here = pathlib.Path(__file__).parent

def fatal(images, conditions):
    # The first call probes the reward, the second scores the fixed set, then there is one a step.
    global calls
    calls += 1
    if (here / f"signal-at-{calls - 2}").exists():
        os.kill(os.getpid(), int((here / f"signal-at-{calls - 2}").read_text()))
    return images.mean((1, 2, 3))
"""


def options(config: GRPOConfig, run: Path, changed: tuple[str, ...]) -> list[str]:
    """The command line of a config that differs from the recipe's in these fields."""
    arguments = ["train", "emoji-dark", "--run-dir", str(run)]
    for name in changed:
        value = getattr(config, name)
        values = [part for item in value.items() for part in item] if isinstance(value, dict) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments


FIELDS = (
    "model", "reward", "steps", "labels_per_step", "group_size", "minibatch_size", "micro_batch_size",
    "sample_batch_size", "temperature", "learning_rate", "final_learning_rate", "device", "eval_images", "save_every",
    "sample_every",
)  # fmt: skip


def config_of(tiny_model: Path, folder: Path) -> GRPOConfig:
    """Four steps with a reward that may send its process a signal; the loss is the recipe's."""
    from sfumato.recipes import TRAIN_RECIPES

    (folder / "r.py").write_text(REWARD)
    loss = TRAIN_RECIPES["emoji-dark"][1]().loss
    reward = {f"{folder}/r.py:fatal": 1.0}
    return tiny_config(tiny_model, reward=reward, loss=loss, steps=4, save_every=2, sample_every=4)


@pytest.mark.parametrize(
    ("signum", "at", "status", "logged"),
    # Killed in step 4, the run has logged a step that its checkpoint at 2 does not know.
    [(signal.SIGKILL, 4, -signal.SIGKILL, [1, 2, 3]), (signal.SIGINT, 3, 130, [1, 2, 3])],
)
def test_resumed_equals_uninterrupted(
    tiny_model: Path, tmp_path: Path, signum: signal.Signals, at: int, status: int, logged: list[int]
):
    config, run = config_of(tiny_model, tmp_path), tmp_path / "run"
    (tmp_path / f"signal-at-{at}").write_text(str(int(signum)))
    result = run_module("sfumato", *options(config, run, FIELDS))
    assert result.returncode == status, result.stderr
    assert [line["step"] for line in metrics_of(run)] == logged
    saved = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert saved == (["step-000002"] if signum == signal.SIGKILL else ["step-000002", "step-000003"])
    if signum == signal.SIGINT:
        assert "Stopped after step 3" in result.stdout
        assert "--resume" in result.stdout

    (tmp_path / f"signal-at-{at}").unlink()
    console = Console(quiet=True)
    assert train(config, run, resume=True, console=console)
    assert train(config, tmp_path / "uninterrupted", console=console)
    assert_same_run(run, tmp_path / "uninterrupted", 4)


def test_two_processes_equal_one(tiny_model: Path, tmp_path: Path):
    config = config_of(tiny_model, tmp_path)
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sfumato")
    result = run_module(*launcher, *options(config, tmp_path / "two", FIELDS))
    assert result.returncode == 0, result.stderr
    assert train(config, tmp_path / "one", console=Console(quiet=True))
    (two, two_state), (one, one_state) = (checkpoint_of(tmp_path / name, 4) for name in ("two", "one"))
    assert max_difference(one, two) < 1e-5
    assert torch.equal(one_state["rng"], two_state["rng"])
    for line, other in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert other[name] == pytest.approx(value, abs=1e-5), (line["step"], name)


def max_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
