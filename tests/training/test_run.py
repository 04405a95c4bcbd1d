"""Run folders: their files, resuming, and what is refused."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, checkpoint_of, metrics_of
from tiny import CLASS_NAMES, tiny_conditions, tiny_config

from sfumato.data.pictures import COLUMNS, tiles
from sfumato.families.library import load
from sfumato.objectives.grpo import LossConfig
from sfumato.rewards.pixels import brightness
from sfumato.training.logger import MetricsFile
from sfumato.training.train import Run, train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps without interruption; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny_config(tiny_model, steps=4, save_every=2, sample_every=2), folder, console=QUIET)
    return folder


def test_files_of_a_run(finished_run: Path, tiny_model: Path):
    assert {p.name for p in finished_run.iterdir()} >= {
        "config.json", "metrics.jsonl", "before_after.png", "curves.png", "samples", "checkpoints", "tensorboard",
    }  # fmt: skip
    assert sorted(p.name for p in (finished_run / "samples").iterdir()) == [
        "step-000000.png", "step-000002.png", "step-000004.png",
    ]  # fmt: skip
    assert sorted(p.name for p in (finished_run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    config = json.loads((finished_run / "config.json").read_text())
    assert config["model"] == str(tiny_model)
    assert config["reward"] == {"brightness": 1.0}
    assert config["loss"] == {"clip": 0.2, "kl_weight": 0.1}
    assert config["steps"] == 4
    assert list((finished_run / "tensorboard").iterdir())
    for name in ("before_after.png", "curves.png", "samples/step-000004.png"):
        with Image.open(finished_run / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50, name


def test_metrics_of_a_run(finished_run: Path):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
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
    lines = [json.loads(line) for line in (finished_run / "fixed_set.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        assert line["names"] == [CLASS_NAMES[n * 4 // 15] for n in range(16) for _ in range(2)]  # spread evenly
        assert sum(line["rewards"]) / 32 == pytest.approx(line["reward_mean"], abs=1e-4)
        with Image.open(finished_run / f"samples/step-{line['step']:06d}.png") as sheet:
            drawn = torch.tensor(np.stack([np.array(tile) for tile in tiles(sheet, COLUMNS)])).movedim(3, 1) / 255
        assert brightness(drawn, tiny_conditions([0] * 32)).tolist() == pytest.approx(line["rewards"], abs=0.002)


def test_a_run_is_a_model(finished_run: Path):
    final, first = load(finished_run).generator, load(finished_run / "checkpoints/step-000002").generator
    assert final.class_names == CLASS_NAMES
    weights, state = checkpoint_of(finished_run, 4)
    assert state["step"] == 4
    ours = final.transformer.state_dict()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    assert not torch.equal(final.transformer.head.weight, first.transformer.head.weight)  # pyright: ignore


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C when the step's metrics are written."""
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
    with pytest.raises(ValueError, match=r"run_dir: .* is not empty; continue it with --resume or choose another"):
        train(tiny_config(tiny_model), finished_run, console=QUIET)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="run_dir: .*is not empty"):  # noqa: RUF043
        train(tiny_config(tiny_model), tmp_path, console=QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 8}, "group_size: 8 differs from the run's 4"),
        ({"loss": LossConfig(kl_weight=0.5)}, "loss: .* differs from the run's"),
        ({"reward": {"darkness": 1.0}}, "reward: .* differs from the run's"),
        ({"seed": 1}, "seed: 1 differs from the run's 0"),
    ],
)
def test_resuming_with_other_settings_is_refused(finished_run: Path, tiny_model: Path, changes: dict, message: str):
    before = (finished_run / "config.json").read_text()
    with pytest.raises(ValueError, match=message):
        train(
            tiny_config(tiny_model, **{"steps": 4, "save_every": 2, "sample_every": 2, **changes}),
            finished_run,
            resume=True,
            console=QUIET,
        )
    assert (finished_run / "config.json").read_text() == before


def test_another_base_model_is_noticed(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "base")
    settings = {"steps": 2, "save_every": 1, "eval_images": 0}
    assert train(tiny_config(tmp_path / "base", **settings), tmp_path / "run", console=QUIET)
    weights = tmp_path / "base/transformer.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with pytest.raises(ValueError, match=r"model: .*base is not what it was when the run began; put its weights back"):
        train(tiny_config(tmp_path / "base", **{**settings, "steps": 3}), tmp_path / "run", resume=True, console=QUIET)


def test_fewer_steps_than_are_done(finished_run: Path, tiny_model: Path):
    with pytest.raises(ValueError, match=r"steps: 3 are fewer than the 4 done; give as many or more"):
        train(tiny_config(tiny_model, steps=3, save_every=2, sample_every=2), finished_run, resume=True, console=QUIET)


def test_a_failing_picture_costs_no_step(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, whole = tiny_config(tiny_model, steps=2, save_every=1, sample_every=1, eval_images=0), Run.draw_samples

    def draw_samples(self: Run, step: int) -> None:
        if step:
            raise OSError("no space left on device")
        whole(self, step)

    monkeypatch.setattr(Run, "draw_samples", draw_samples)
    with pytest.raises(OSError, match="no space"):
        train(config, tmp_path / "run", console=QUIET)
    monkeypatch.undo()
    assert (tmp_path / "run/checkpoints/step-000001").is_dir()
    assert train(config, tmp_path / "run", resume=True, console=QUIET)
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir()) == [
        f"step-{step:06d}.png" for step in range(3)
    ]


def test_nothing_to_resume(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="run_dir: .* holds no run to resume"):  # noqa: RUF043
        train(tiny_config(tiny_model), tmp_path / "run", resume=True, console=QUIET)


def test_checkpoints_kept(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=3, save_every=1, sample_every=3, keep_checkpoints=1)
    train(config, tmp_path / "run", console=QUIET)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]


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
    # Measuring draws from a stream of its own.
    train(tiny_config(tiny_model, steps=1, reward=config.reward), tmp_path / "unmeasured", console=QUIET)
    assert metrics_of(tmp_path / "unmeasured") == metrics_of(tmp_path / "run")


REWARD = """
import torch

calls = 0

def fragile(images, conditions):
    global calls
    calls += 1
    scores = images.mean((1, 2, 3))
    if calls == {bad_call}:
        scores[0] = float("inf")
    return scores
"""


@pytest.mark.parametrize(
    ("bad_call", "message"), [(4, r"step 2: reward '.*r\.py:fragile' returned inf"), (1, "^reward ")]
)
def test_a_broken_reward_is_named_with_its_step(tiny_model: Path, tmp_path: Path, bad_call: int, message: str):
    (tmp_path / "r.py").write_text(REWARD.format(bad_call=bad_call))
    config = tiny_config(tiny_model, reward={f"{tmp_path}/r.py:fragile": 1.0})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", console=QUIET)
    # Found by the probe, it leaves no folder behind.
    assert (tmp_path / "run").exists() == (bad_call == 4)


def test_plain_lines_of_progress(tiny_model: Path, tmp_path: Path):
    console = Console(record=True, width=200, force_terminal=False, file=(tmp_path / "log.txt").open("w"))
    train(tiny_config(tiny_model), tmp_path / "run", console=console)
    console.file.close()
    lines = console.export_text().splitlines()
    metrics = metrics_of(tmp_path / "run")
    assert lines[0].startswith(f"step 1/2  reward {metrics[0]['reward_mean']:.3f}")
    assert lines[1].startswith("step 2/2  reward ")
