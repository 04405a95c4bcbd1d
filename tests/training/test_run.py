"""Run folders: their files, resuming, and settings that are rejected."""

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, checkpoint_of, lines_of, make_version_0_1, metrics_of
from tiny import CLASS_NAMES, tiny_config, tiny_request
from torch import nn

from sfumato.cli.main import main
from sfumato.data import pictures
from sfumato.data.pictures import COLUMNS, tiles
from sfumato.families import load
from sfumato.families.var.network import VARTransformer
from sfumato.objectives import GDPO, GRPO
from sfumato.rewards.pixels import brightness
from sfumato.training.hooks import checkpoints, sample_pictures
from sfumato.training.hooks.metrics import MetricsFile
from sfumato.training.train import train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps without interruption; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny_config(tiny_model, steps=4, save_every=2, sample_every=2), folder, console=QUIET)
    return folder


def test_files_of_a_run(finished_run: Path, tiny_model: Path):
    assert {p.name for p in finished_run.iterdir()} >= {
        "config.json", "metrics.jsonl", "before_after.png", "curves.png", "samples", "checkpoints",
    }  # fmt: skip
    assert sorted(p.name for p in (finished_run / "samples").iterdir()) == [
        "step-000000.png", "step-000002.png", "step-000004.png",
    ]  # fmt: skip
    assert sorted(p.name for p in (finished_run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    for checkpoint in (finished_run / "checkpoints").iterdir():
        assert {p.name for p in checkpoint.iterdir()} == {"model", "engine.pt", "state.pt"}
    config = json.loads((finished_run / "config.json").read_text())
    assert config["model"] == str(tiny_model)
    assert config["reward"] == {"brightness": 1.0}
    assert config["objective"] == {
        "name": "grpo",
        "clip": 0.2,
        "kl_weight": 0.1,
        "report_kl": False,
        "skip_equal_groups": True,
        "kl": "k3",
        "deviation": "group",
    }
    assert config["policy"] == {"guidance": None, "temperature": 0.7, "top_k": 0, "top_p": 0.0}
    assert config["engine"]["learning_rate"] == 1e-3
    assert config["steps"] == 4
    for name in ("before_after.png", "curves.png", "samples/step-000004.png"):
        with Image.open(finished_run / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50, name


def test_metrics_of_a_run(finished_run: Path):
    lines = lines_of(finished_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {
            "step", "reward_mean", "reward_std", "reward/brightness", "kl", "entropy", "clip_fraction", "ratio_mean",
            "grad_norm", "images_per_second", "seconds/sample", "seconds/decode", "seconds/reward",
            "seconds/reference", "seconds/update",
        } <= line.keys()  # fmt: skip
        assert all(math.isfinite(value) for value in line.values())
    assert lines[0]["reward_mean"] == lines[0]["reward/brightness"]
    assert lines[0]["kl"] < lines[-1]["kl"]


def test_rewards_of_the_fixed_pictures(finished_run: Path):
    lines = lines_of(finished_run / "fixed_set.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        assert line["names"] == [CLASS_NAMES[n * 4 // 15] for n in range(16) for _ in range(2)]  # spread evenly
        assert sum(line["rewards"]) / 32 == pytest.approx(line["reward_mean"], abs=1e-4)
        with Image.open(finished_run / f"samples/step-{line['step']:06d}.png") as sheet:
            drawn = torch.tensor(np.stack([np.array(tile) for tile in tiles(sheet, COLUMNS)])).movedim(3, 1) / 255
        assert brightness(drawn, tiny_request([0] * 32).words).tolist() == pytest.approx(line["rewards"], abs=0.002)


def head_of(network: nn.Module) -> torch.Tensor:
    assert isinstance(network, VARTransformer)
    return network.head.weight


def test_a_run_is_a_model(finished_run: Path):
    final, first = load(finished_run).generator, load(finished_run / "checkpoints/step-000002").generator
    assert final.card.class_names == CLASS_NAMES
    weights, state = checkpoint_of(finished_run, 4)
    assert state["step"] == 4
    ours = final.network.state_dict()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    assert not torch.equal(head_of(final.network), head_of(first.network))


@pytest.mark.parametrize("report_kl", [False, True])
def test_a_run_without_kl(tiny_model: Path, tmp_path: Path, report_kl: bool):
    """No reference is run and no KL is logged, but the curves are still drawn. The KL is logged on request."""
    config = tiny_config(tiny_model, objective=GRPO(kl_weight=0.0, report_kl=report_kl), save_every=1, sample_every=1)
    assert train(config, tmp_path / "run", console=QUIET)
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    assert len(lines) == 2
    for line in lines:
        assert ("kl" in line) == ("seconds/reference" in line) == report_kl
    with Image.open(tmp_path / "run/curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert train(replace(config, steps=3), tmp_path / "run", resume=True, console=QUIET)
    assert [line["step"] for line in lines_of(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


def test_a_run_with_another_objective(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, objective=GDPO(kl_weight=0.1), reward={"brightness": 1.0, "colorfulness": 1.0})
    assert train(config, tmp_path / "run", console=QUIET)
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["objective"] == {"name": "gdpo", "clip": 0.2, "kl_weight": 0.1, "skip_equal_groups": True}
    assert all(line["kl"] >= 0 for line in lines_of(tmp_path / "run/metrics.jsonl"))
    with bad_input("objective.name", "'grpo'", "'gdpo'"):
        train(replace(config, objective=GRPO(kl_weight=0.1)), tmp_path / "run", resume=True, console=QUIET)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send Ctrl-C when the metrics of this step are written."""
    write = MetricsFile.write

    def write_and_stop(self: MetricsFile, metrics: dict[str, float]) -> None:
        write(self, metrics)
        if metrics["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "write", write_and_stop)


@pytest.mark.parametrize("step", [1, 2])
def test_resumed_equals_uninterrupted(
    finished_run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    config = tiny_config(tiny_model, steps=4, save_every=2, sample_every=2)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert not train(config, tmp_path / "run", console=QUIET)
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == list(range(1, step + 1))
    assert checkpoint_of(tmp_path / "run", step)[1]["step"] == step
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert_same_run(tmp_path / "run", finished_run, 4)


def test_resuming_a_finished_run_does_nothing(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=1)
    assert train(config, tmp_path / "run", console=QUIET)
    before = metrics_of(tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert metrics_of(tmp_path / "run") == before


def test_half_a_line_of_metrics_is_dropped(
    finished_run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(tiny_model, steps=4, save_every=2, sample_every=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(config, tmp_path / "run", console=QUIET)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward_mean": 0.123}\n{"step": 4, "rewa')
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert_same_run(tmp_path / "run", finished_run, 4)


def test_existing_folders_are_refused(finished_run: Path, tiny_model: Path, tmp_path: Path):
    with bad_input("run_dir", str(finished_run), "--resume", "--run-dir"):
        train(tiny_config(tiny_model), finished_run, console=QUIET)
    (tmp_path / "notes.txt").write_text("mine")
    with bad_input("run_dir", str(tmp_path)):
        train(tiny_config(tiny_model), tmp_path, console=QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "field", "pieces"),
    [
        ({"group_size": 8}, "group_size", ("8", "4")),
        ({"objective": GRPO(kl_weight=0.5)}, "objective.kl_weight", ("0.5", "0.1")),
        ({"objective": GRPO(clip=0.1, kl_weight=0.1)}, "objective.clip", ("0.1", "0.2")),
        ({"objective": GRPO(kl_weight=0.1, report_kl=True)}, "objective.report_kl", ("True", "False")),
        ({"temperature": 0.5}, "policy.temperature", ("0.5", "0.7")),
        ({"guidance": 2.0}, "policy.guidance", ("2.0", "None")),
        ({"learning_rate": 0.5}, "engine.learning_rate", ("0.5", "0.001")),
        ({"reward": {"darkness": 1.0}}, "reward", ("darkness", "brightness")),
        ({"seed": 1}, "seed", ("1", "0")),
    ],
)
def test_resuming_with_other_settings_is_refused(
    finished_run: Path, tiny_model: Path, changes: dict[str, Any], field: str, pieces: tuple[str, ...]
):
    before = (finished_run / "config.json").read_text()
    config = tiny_config(tiny_model, **{"steps": 4, "save_every": 2, "sample_every": 2, **changes})
    with bad_input(field, *pieces):
        train(config, finished_run, resume=True, console=QUIET)
    assert (finished_run / "config.json").read_text() == before


def test_another_base_model_is_noticed(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "base")
    settings = {"save_every": 1, "eval_images": 0}
    config = tiny_config(tmp_path / "base", **settings)
    assert train(config, tmp_path / "run", console=QUIET)
    weights = tmp_path / "base/transformer.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with bad_input("model"):
        train(replace(config, steps=3), tmp_path / "run", resume=True, console=QUIET)


def test_fewer_steps_than_are_done(finished_run: Path, tiny_model: Path):
    with bad_input("steps", "3", "4"):
        train(tiny_config(tiny_model, steps=3, save_every=2, sample_every=2), finished_run, resume=True, console=QUIET)


def test_a_failing_picture_costs_no_step(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run goes on and says so in one line; the figures of the step are still logged."""
    config = tiny_config(tiny_model, steps=2, save_every=1, sample_every=1)

    def save_picture(picture: Image.Image, path: Path) -> None:
        if path.name == "step-000001.png":
            raise OSError("no space left on device")
        pictures.save_picture(picture, path)

    monkeypatch.setattr(sample_pictures, "save_picture", save_picture)
    console = Console(record=True, width=200, file=(tmp_path / "log.txt").open("w"))
    assert train(config, tmp_path / "run", console=console)
    console.file.close()
    notes = [line for line in console.export_text().splitlines() if "no space" in line]
    assert len(notes) == 1
    assert "step 1" in notes[0]
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir()) == ["step-000000.png", "step-000002.png"]
    assert [line["step"] for line in lines_of(tmp_path / "run/fixed_set.jsonl")] == [0, 1, 2]
    with Image.open(tmp_path / "run/before_after.png") as picture:
        picture.verify()


def test_nothing_to_resume(tiny_model: Path, tmp_path: Path):
    with bad_input("run_dir", str(tmp_path / "run"), "--resume"):
        train(tiny_config(tiny_model), tmp_path / "run", resume=True, console=QUIET)


def test_checkpoints_kept(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=3, save_every=1, sample_every=3, keep_checkpoints=1)
    train(config, tmp_path / "run", console=QUIET)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_checkpoints_share_the_tokenizer_and_never_pile_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
):
    folder, counts = tmp_path / "run/checkpoints", []
    settle, remove = checkpoints.settle, checkpoints.remove

    def count() -> None:
        counts.append(len([path for path in folder.iterdir() if path.is_dir()]))

    def watched_settle(path: Path) -> None:
        count()  # the new checkpoint is complete, under its temporary name
        settle(path)
        count()

    def watched_remove(path: Path) -> None:
        count()
        remove(path)

    monkeypatch.setattr(checkpoints, "settle", watched_settle)
    monkeypatch.setattr(checkpoints, "remove", watched_remove)
    config = tiny_config(tiny_model, steps=5, save_every=1, sample_every=5, keep_checkpoints=keep)
    inodes = []
    write_metrics = MetricsFile.write

    def write_and_look(self: MetricsFile, metrics: dict[str, float]) -> None:
        inodes.extend(path.stat().st_ino for path in sorted(folder.glob("step-*/model/tokenizer.safetensors"))[-1:])
        write_metrics(self, metrics)

    monkeypatch.setattr(MetricsFile, "write", write_and_look)
    assert train(config, tmp_path / "run", console=QUIET)
    assert max(counts) <= keep + 1
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:06d}" for step in range(6 - keep, 6)]
    # All checkpoints share one file, although the first checkpoint is deleted.
    inodes += [path.stat().st_ino for path in folder.glob("step-*/model/tokenizer.safetensors")]
    assert len(inodes) > keep
    assert len(set(inodes)) == 1
    networks = [path.stat().st_ino for path in folder.glob("step-*/model/transformer.safetensors")]
    assert len(set(networks)) == keep
    base = safetensors.torch.load_file(tiny_model / "tokenizer.safetensors")
    last = safetensors.torch.load_file(folder / "step-000005/model/tokenizer.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in base.items())
    (folder / "step-000005/model/tokenizer.safetensors").unlink()  # the other checkpoints keep the file
    assert all(path.stat().st_size for path in folder.glob("step-*/model/tokenizer.safetensors"))


def test_where_files_cannot_be_linked_they_are_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def link(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", link)
    assert train(tiny_config(tiny_model, save_every=1), tmp_path / "run", console=QUIET)
    files = sorted((tmp_path / "run").glob("checkpoints/*/model/tokenizer.safetensors"))
    assert len({path.stat().st_ino for path in files}) == 2
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_a_run_of_version_0_1_is_resumed(tiny_model: Path, tmp_path: Path, guidance: float | None):
    settings = {"save_every": 2, "sample_every": 2, "held_out": ("dark",), "held_out_every": 2, "guidance": guidance}
    config = tiny_config(tiny_model, steps=4, **settings)
    assert train(config, tmp_path / "whole", console=QUIET)
    assert train(replace(config, steps=2), tmp_path / "run", console=QUIET)
    make_version_0_1(tmp_path / "run")
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["labels_per_step"], saved["temperature"], saved["guidance"]) == (2, 0.7, guidance or 0.0)
    assert not list((tmp_path / "run").rglob("engine.pt"))
    with bad_input("objective.clip", "0.1", "0.2"):  # its settings are compared
        other = replace(config, objective=GRPO(clip=0.1, kl_weight=0.1))
        train(other, tmp_path / "run", resume=True, console=QUIET)
    with bad_input("engine.learning_rate", "0.5", "0.001"):
        other = replace(config, engine=replace(config.engine, learning_rate=0.5))
        train(other, tmp_path / "run", resume=True, console=QUIET)
    assert json.loads((tmp_path / "run/config.json").read_text()) == saved
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert_same_run(tmp_path / "run", tmp_path / "whole", 4)
    assert lines_of(tmp_path / "run/held_out.jsonl") == lines_of(tmp_path / "whole/held_out.jsonl")
    assert lines_of(tmp_path / "run/fixed_set.jsonl") == lines_of(tmp_path / "whole/fixed_set.jsonl")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "whole")]
    assert configs[0] == configs[1]


def test_a_run_of_version_0_1_is_resumed_from_the_command_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The run resumes with the command that started it, although its options have new names."""
    run = tmp_path / "run"
    command = ["train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), "--labels-per-step", "2"]
    command += ["--group-size", "2", "--minibatch-size", "4", "--loss.kl-weight", "0.05", "--eval-images", "0"]
    command += ["--combine", "gdpo", "--final-learning-rate", "2e-4", "--save-every", "1", "--device", "cpu"]
    assert main([*command, "--steps", "1"]) == 0
    make_version_0_1(run)
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**saved, "combine": "gdpo"}))
    assert main([*command, "--steps", "2", "--resume"]) == 0
    assert [line["step"] for line in metrics_of(run)] == [1, 2]
    assert capsys.readouterr().err.count("--objective.kl-weight") == 2


def test_another_base_model_is_noticed_in_a_run_of_version_0_1(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "base")
    config = tiny_config(tmp_path / "base", save_every=1)
    assert train(config, tmp_path / "run", console=QUIET)
    make_version_0_1(tmp_path / "run")
    weights = tmp_path / "base/transformer.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with bad_input("model"):
        train(replace(config, steps=3), tmp_path / "run", resume=True, console=QUIET)


def test_measurements_before_and_after(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=1, eval_images=6, reward={"brightness": 2.0, "dark": 1.0})
    train(config, tmp_path / "run", console=QUIET)
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert results.keys() == {"before", "after"}
    for result in results.values():
        assert result.keys() == {"images", "reward_mean", "reward/brightness", "reward/dark"}
        assert result["images"] == 6
        expected = 2 * result["reward/brightness"] + result["reward/dark"]
        assert result["reward_mean"] == pytest.approx(expected, abs=1e-6)
    assert results["before"]["reward_mean"] != results["after"]["reward_mean"]
    # Measurements use a separate random stream.
    train(tiny_config(tiny_model, steps=1, reward=config.reward), tmp_path / "unmeasured", console=QUIET)
    assert metrics_of(tmp_path / "unmeasured") == metrics_of(tmp_path / "run")


REWARD = """
import torch

calls = 0

def fragile(images, words):
    global calls
    calls += 1
    scores = images.mean((1, 2, 3))
    if calls == {bad_call}:
        scores[0] = float("inf")
    return scores
"""


@pytest.mark.parametrize(("bad_call", "field", "start"), [(4, "step", "step 2: reward "), (1, "reward", "reward ")])
def test_a_broken_reward_is_named_with_its_step(
    tiny_model: Path, tmp_path: Path, bad_call: int, field: str, start: str
):
    (tmp_path / "r.py").write_text(REWARD.format(bad_call=bad_call))
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:fragile": 1.0})
    with bad_input(field, f"{start}'{tmp_path}/r.py:fragile'", "inf"):
        train(config, tmp_path / "run", console=QUIET)
    # If the first test call fails, no folder is created.
    assert (tmp_path / "run").exists() == (bad_call == 4)


def test_plain_lines_of_progress(tiny_model: Path, tmp_path: Path):
    console = Console(record=True, width=200, force_terminal=False, file=(tmp_path / "log.txt").open("w"))
    train(tiny_config(tiny_model), tmp_path / "run", console=console)
    console.file.close()
    lines = console.export_text().splitlines()
    metrics = metrics_of(tmp_path / "run")
    assert lines[0].startswith("Loading ")
    assert lines[1].startswith("Training draws with ")
    assert lines[2].startswith(f"step 1/2  reward {metrics[0]['reward_mean']:.4f}")
    assert lines[3].startswith("step 2/2  reward ")


def test_a_reward_that_fails_in_a_hook_costs_no_step(tiny_model: Path, tmp_path: Path):
    # Calls: the probe, the fixed set at the start, the batch, and the fixed set after the first step.
    (tmp_path / "r.py").write_text(REWARD.format(bad_call=4))
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:fragile": 1.0}, sample_every=1, save_every=10)
    with bad_input("step", "step 1: reward ", "inf"):
        train(config, tmp_path / "run", console=QUIET)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000001"]
    (tmp_path / "r.py").write_text(REWARD.format(bad_call=0))
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]
