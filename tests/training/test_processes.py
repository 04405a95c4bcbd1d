"""Runs in separate processes: killed, interrupted, and with two processes."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run_module
from rich.console import Console
from run_folders import assert_same_run, checkpoint_of, lines_of, metrics_of
from tiny import tiny_config, tiny_var
from torch import Tensor

from sfumato.families.library import save_model
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig

REWARD = """
import os, pathlib, signal

calls = 0
here = pathlib.Path(__file__).parent

def fatal(images, words):
    # The first call probes the reward, the second scores the fixed set, then there is one per step.
    global calls
    calls += 1
    if (here / f"signal-at-{calls - 2}").exists():
        os.kill(os.getpid(), int((here / f"signal-at-{calls - 2}").read_text()))
    return images.mean((1, 2, 3))
"""


def options(config: TrainConfig, run: Path, changed: tuple[str, ...]) -> list[str]:
    """Return the command line for a config that differs from the recipe's in these fields."""
    arguments = ["train", "emoji-dark", "--run-dir", str(run)]
    for name in changed:
        holder = next(part for part in (config, config.policy, config.engine) if hasattr(part, name))
        value = getattr(holder, name)
        values = [part for item in value.items() for part in item] if isinstance(value, dict) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments


FIELDS = (
    "model", "reward", "steps", "groups_per_step", "group_size", "minibatch_size", "micro_batch_size",
    "sample_batch_size", "temperature", "learning_rate", "final_learning_rate", "device", "eval_images", "save_every",
    "sample_every",
)  # fmt: skip


def config_of(tiny_model: Path, folder: Path) -> TrainConfig:
    """Build a config of four steps with the recipe's objective, and a reward that may send a signal to its process."""
    from sfumato.recipes import TRAIN_RECIPES

    (folder / "r.py").write_text(REWARD)
    objective = TRAIN_RECIPES["emoji-dark"].build().objective
    reward = {f"{folder}/r.py:fatal": 1.0}
    return tiny_config(tiny_model, reward=reward, objective=objective, steps=4, save_every=2, sample_every=4)


@pytest.mark.parametrize(
    ("signum", "at", "status", "logged"),
    # If killed in step 4, the run has logged step 3, which is later than its checkpoint at step 2.
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


LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_processes_equal_one(tiny_model: Path, tmp_path: Path):
    config = config_of(tiny_model, tmp_path)
    result = run_module(*LAUNCHER, "-m", "sfumato", *options(config, tmp_path / "two", FIELDS))
    assert result.returncode == 0, result.stderr
    assert train(config, tmp_path / "one", console=Console(quiet=True))
    assert_near(tmp_path / "one", tmp_path / "two")


def assert_near(one: Path, two: Path) -> None:
    """Check that two runs of four steps are equal except for the order of sums."""
    (weights, state), (other_weights, other_state) = checkpoint_of(one, 4), checkpoint_of(two, 4)
    assert max_difference(weights, other_weights) < 1e-5
    assert torch.equal(state["rng"], other_state["rng"])
    assert_near_rows(metrics_of(one), metrics_of(two))


def assert_near_rows(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if name == "names":
                assert other[name] == value
            else:
                assert other[name] == pytest.approx(value, abs=1e-5), (line["step"], name)


def max_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


WATCHED = """
import json, os, pathlib, sys
from rich.console import Console
from sfumato.training import train as training
from sfumato.training.hooks.held_out import HeldOut

sys.path.insert(0, sys.argv[4])
from tiny import tiny_config

here, model = pathlib.Path(sys.argv[1]), sys.argv[2]
calls, figures, build, measure = [], [], training.build_hooks, HeldOut.measure

def watched(hook):
    def call(progress):
        calls.append([type(hook).__name__, progress.step])
        hook(progress)
    return call

def remember(self):
    figures.append(measure(self))
    return figures[-1]

HeldOut.measure = remember
training.build_hooks = lambda *arguments: [watched(hook) for hook in build(*arguments)]
config = tiny_config(model, **json.loads(sys.argv[3]))
assert training.train(config, here / "two", console=Console(quiet=True))
(here / f"rank-{os.environ['RANK']}.json").write_text(json.dumps({"calls": calls, "figures": figures}))
"""


def test_every_hook_is_called_by_every_process(tmp_path: Path):
    """Hooks write the same with two processes as with one, also for odd numbers of images."""
    generator = tiny_var()
    generator.card = replace(generator.card, judge="emoji")
    save_model(tmp_path / "model", generator)
    changes = {
        "steps": 4, "save_every": 2, "sample_every": 2, "eval_images": 5, "held_out": ("colorfulness", "dark"),
        "held_out_every": 2, "sample_batch_size": 4,
    }  # fmt: skip
    (tmp_path / "watched.py").write_text(WATCHED)
    tests = str(Path(__file__).parents[1])
    arguments = (str(tmp_path / "watched.py"), str(tmp_path), str(tmp_path / "model"), json.dumps(changes), tests)
    result = run_module(*LAUNCHER, *arguments)
    assert result.returncode == 0, result.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    hooks = ("HeldOut", "Metrics", "Stop", "Checkpoints", "Pictures", "BeforeAfter")
    assert ranks[0]["calls"] == ranks[1]["calls"] == [[hook, step] for step in range(5) for hook in hooks]
    # Rank 1 also has the held-out figures, so both ranks decide from the same figures.
    assert len(ranks[0]["figures"]) == 3
    assert ranks[0]["figures"] == ranks[1]["figures"]
    assert {"reward/colorfulness", "reward/dark", "diversity", "entropy"} <= ranks[0]["figures"][0].keys()

    config = tiny_config(tmp_path / "model", **changes)
    assert train(config, tmp_path / "one", console=Console(quiet=True))
    one, two = tmp_path / "one", tmp_path / "two"
    assert_near(one, two)
    for name in ("held_out.jsonl", "fixed_set.jsonl"):
        assert_near_rows(lines_of(one / name), lines_of(two / name))
    measured = [json.loads((run / "evaluation.json").read_text()) for run in (one, two)]
    for moment in ("before", "after"):
        assert measured[1][moment] == pytest.approx(measured[0][moment], abs=1e-5)
        assert measured[0][moment]["images"] == 5
    files = [sorted(str(path.relative_to(run)) for path in run.rglob("*.png")) for run in (one, two)]
    assert files[0] == files[1]
