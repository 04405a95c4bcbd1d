"""Runs in separate processes: killed, interrupted, failing, and with several processes."""

import json
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run_module
from rich.console import Console
from run_folders import assert_equal, assert_same_run, checkpoint_of, lines_of, metrics_of
from tiny import tiny_config, tiny_var
from torch import Tensor

from sfumato.cli.train import with_objective
from sfumato.families.library import save_model
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig

OWN = """
import os, pathlib, signal, time
from dataclasses import dataclass
import torch
from sfumato.engine import watch
from sfumato.objectives import GRPO

watch.BEAT, watch.SILENCE, watch.WORK = 0.2, 3.0, 2.0
here, rank = pathlib.Path(__file__).parent, os.environ.get("RANK", "0")
calls = {"reward": 0, "credit": 0}

def misbehave(place):
    calls[place] += 1
    plan = here / f"{place}-{calls[place]}-rank-{rank}"
    if plan.exists():
        what = plan.read_text()
        if what == "raise":
            raise OSError("no route")
        if what != "hang":
            os.kill(os.getpid(), getattr(signal, what))
        if what != "SIGINT":
            time.sleep(1000)

def fatal(images, words):
    # The first call probes the reward, the second scores the fixed set, then there is one per step.
    misbehave("reward")
    return images.mean((1, 2, 3))

class Odd:
    # How much an image differs from its group and from all images of the steps before.
    def __init__(self):
        self.seen = torch.zeros(2)

    def features(self, images, words):
        return images.mean((2, 3))

    def scores(self, features, words, groups):
        means = torch.stack([features[groups == group].mean(0) for group in groups.tolist()])
        return ((features - means) + features * self.seen[0]).sum(1)

    def update(self, features):
        self.seen = self.seen + torch.tensor([features.mean(), 1.0])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

@dataclass(frozen=True, kw_only=True)
class Fatal(GRPO):
    def credit(self, batch):
        misbehave("credit")
        return super().credit(batch)
"""
"""A reward and an objective that fail in a call for which there is a file with this call's number and rank, a reward
that compares images and has a state, and short time limits for the supervision of processes."""


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
    """Build a config of four steps with the recipe's objective, and a reward that may fail."""
    from sfumato.recipes import TRAIN_RECIPES

    (folder / "own.py").write_text(OWN)
    objective = TRAIN_RECIPES["emoji-dark"].build().objective
    reward = {f"{folder}/own.py:fatal": 1.0, f"{folder}/own.py:Odd": 0.5}
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
    plan = tmp_path / f"reward-{at + 2}-rank-0"
    plan.write_text(signum.name)
    result = run_module("sfumato", *options(config, run, FIELDS))
    assert result.returncode == status, result.stderr
    assert [line["step"] for line in metrics_of(run)] == logged
    saved = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert saved == (["step-000002"] if signum == signal.SIGKILL else ["step-000002", "step-000003"])
    if signum == signal.SIGINT:
        assert "Stopped after step 3" in result.stdout
        assert f"sfumato train --resume {run}" in result.stderr

    plan.unlink()
    console = Console(quiet=True)
    assert train(config, run, resume=True, console=console)
    assert train(config, tmp_path / "uninterrupted", console=console)
    assert_same_run(run, tmp_path / "uninterrupted", 4)


def launcher(processes: int) -> tuple[str, ...]:
    return ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))


def launch(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run `sfumato launch`; return its result and the seconds that it took."""
    began = time.monotonic()
    return run_module("sfumato", "launch", *arguments), time.monotonic() - began


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.splitlines()[-1]


PAIR = """
import json, os, pathlib, sys
from sfumato.cli.main import run

folder = pathlib.Path(sys.argv[1])
undisturbed, resumed = json.loads(sys.argv[2])
assert run(undisturbed) == 0
plan = folder / "reward-3-rank-1"
if os.environ["RANK"] == "1":
    plan.write_text("hang")
assert run(resumed) == 2
assert (folder / "failing/checkpoints/step-000003").exists()
if os.environ["RANK"] == "1":
    plan.unlink()
assert run(resumed) == 0
"""


@dataclass(frozen=True)
class Pair:
    """Runs of two processes in one folder: `two` is undisturbed, `failing` has failed in steps 3 and 4."""

    config: TrainConfig
    folder: Path
    first: subprocess.CompletedProcess[str]
    """`failing` until its reward raises on rank 1 in step 3"""
    seconds: float
    """duration of this"""
    later: subprocess.CompletedProcess[str]
    """`two`; `failing` until its reward hangs on rank 1 in step 4; the rest of `failing`"""


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    config = config_of(tiny_model, folder)
    often = replace(config, save_every=10, reward_timeout=2.0)
    failing = [*options(often, folder / "failing", (*FIELDS, "reward_timeout")), "--overlap-rewards"]
    plan = folder / "reward-5-rank-1"
    plan.write_text("raise")
    first, seconds = launch("--standalone", "--nproc-per-node", "2", *failing)
    plan.unlink()
    (folder / "pair.py").write_text(PAIR)
    commands = json.dumps([options(config, folder / "two", FIELDS), [*failing, "--resume"]])
    later = run_module(*launcher(2), str(folder / "pair.py"), str(folder), commands)
    assert later.returncode == 0, first.stderr + later.stderr
    return Pair(config, folder, first, seconds, later)


def test_two_processes_equal_one(pair: Pair, tmp_path: Path):
    config, folder = pair.config, pair.folder
    assert train(config, tmp_path / "one", console=Console(quiet=True))
    assert_near(tmp_path / "one", folder / "two")


def test_four_processes_share_two_groups(pair: Pair):
    """Every process draws half a group, and learns from one image of every minibatch."""
    config, folder = pair.config, pair.folder
    result = run_module(*launcher(4), "-m", "sfumato", *options(config, folder / "four", FIELDS))
    assert result.returncode == 0, result.stderr
    assert_near(folder / "two", folder / "four")


def test_two_processes_choose_the_same_candidates(tiny_model: Path, tmp_path: Path):
    """Each process may have drawn more of the chosen images than it scores, and both cut at the same unit."""
    # A unit of one token attends to itself only: its queries and keys have no gradient but rounding errors, and in the
    # first steps Adam makes these as large as any. With this seed the cut of the first two steps is later.
    config = with_objective(replace(config_of(tiny_model, tmp_path), candidates=6, seed=2), "random-prefix-grpo")
    command = [*options(config, tmp_path / "two", (*FIELDS, "candidates", "seed")), "--objective", "random-prefix-grpo"]
    result = run_module(*launcher(2), "-m", "sfumato", *command)
    assert result.returncode == 0, result.stderr
    assert train(config, tmp_path / "one", console=Console(quiet=True))
    assert [line["kept_units"] for line in metrics_of(tmp_path / "one")] == [2, 2, 1, 2]
    assert_near(tmp_path / "one", tmp_path / "two")


def test_a_failed_batch_costs_no_step(pair: Pair):
    """The last line states the cause; everything before the failed step is saved; resumed, the run equals another."""
    name = next(iter(pair.config.reward))
    cause = f"sfumato: step 3: rank 1: reward '{name}' failed: OSError: no route"
    assert pair.first.returncode == 2, pair.first.stderr
    assert re.fullmatch(re.escape(cause) + r" \(own\.py, line \d+\)", last_line(pair.first))
    assert pair.seconds < 60
    hung = f"sfumato: step 4: rank 1: reward '{name}' did not return within 2 s; fix it, or raise reward_timeout"
    assert pair.later.stderr.splitlines().count(hung) == 1  # rank 0 says it for both
    assert_same_run(pair.folder / "failing", pair.folder / "two", 4)


def test_a_process_that_hangs_stops_all(pair: Pair):
    """Rank 1 never returns from computing credit; its time limit is that of rewards and two seconds."""
    config, folder = pair.config, pair.folder
    command = options(replace(config, reward_timeout=1.0), folder / "hanging", (*FIELDS, "reward_timeout"))
    plan = folder / "credit-3-rank-1"
    plan.write_text("hang")
    result, seconds = launch("--standalone", "--nproc-per-node", "2", *command, "--objective", f"{folder}/own.py:Fatal")
    plan.unlink()
    assert result.returncode == 1, result.stderr
    assert last_line(result) == "sfumato: rank 1: began no work for 3 s (reward_timeout + 2 s)"
    assert seconds < 60
    assert_same_checkpoint(folder, "hanging")


def test_a_killed_process_stops_all_machines(pair: Pair):
    """Two launchers take the place of two machines. The one whose process is killed knows how; the other does not."""
    config, folder = pair.config, pair.folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    command = options(config, folder / "killed", FIELDS)
    plan = folder / "credit-3-rank-1"
    plan.write_text("SIGKILL")
    with ThreadPoolExecutor() as pool:
        running = [
            pool.submit(launch, *machines, "--node-rank", rank, *command, "--objective", f"{folder}/own.py:Fatal")
            for rank in ("0", "1")
        ]
    plan.unlink()
    causes = "gave no sign of life for 3 s: killed, stopped, or its machine is unreachable", "killed by SIGKILL"
    for (result, seconds), cause in zip((done.result() for done in running), causes, strict=True):
        assert (result.returncode, last_line(result)) == (1, f"sfumato: rank 1: {cause}"), result.stderr
        assert seconds < 60
    assert_same_checkpoint(folder, "killed")


def assert_same_checkpoint(folder: Path, name: str) -> None:
    """Check that a run's last checkpoint, of step 2, is that of the undisturbed run."""
    assert [path.name for path in (folder / name / "checkpoints").iterdir()] == ["step-000002"]
    assert_equal(checkpoint_of(folder / name, 2), checkpoint_of(folder / "two", 2))


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
    result = run_module(*launcher(2), *arguments)
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
