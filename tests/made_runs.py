"""Run folders with known numbers, written by hand, and the content of reports on them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.data.pictures import COLUMNS, grid, save_picture
from sfumato.families.library import save_model
from sfumato.policy import Generator

NAMES = tuple(f"thing {n // 2}" for n in range(16))


def write_run(folder: Path, steps: int = 4, names: Sequence[str] = NAMES, every: int = 2, **changes: Any) -> Path:
    """Write a finished run of `steps` steps.

    Each picture has a single color, which differs from step to step. The reward of the n-th one changes by
    (n - 7) / 100 over the run.
    """
    folder.mkdir(parents=True)
    config = {"model": "emoji-var", "reward": {"dark": 1.0}, "steps": steps, "groups_per_step": 2, "group_size": 4}
    config |= {"objective": {"name": "grpo", "clip": 0.2, "kl_weight": 0.1}, "seed": 0} | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_rows(folder / "metrics.jsonl", [metrics(step) for step in range(1, steps + 1)])
    fixed_set = []
    for step in range(0, steps + 1, every):
        rewards = [0.5 + (n - 7) / 100 * step / steps for n in range(len(names))]
        fixed_set.append({"step": step, "entropy": 1.0, "reward_mean": 0.5, "names": list(names), "rewards": rewards})
        colors = torch.rand(len(names), 3, 1, 1, generator=torch.Generator().manual_seed(step))
        save_picture(grid(colors.expand(-1, -1, 16, 16), COLUMNS), folder / f"samples/step-{step:06d}.png")
    write_rows(folder / "fixed_set.jsonl", fixed_set)
    figures = [{"images": 8, "reward_mean": reward, "reward/dark": reward} for reward in (0.25, 0.75)]
    (folder / "evaluation.json").write_text(json.dumps(dict(zip(("before", "after"), figures, strict=True))))
    return folder


def write_checkpoints(run: Path, generators: Mapping[int, Generator]) -> None:
    """Write a checkpoint of a run for each number of steps, as far as they are only loaded and not resumed."""
    for step, generator in generators.items():
        folder = run / f"checkpoints/step-{step:06d}"
        save_model(folder / "model", generator)
        torch.save({}, folder / "state.pt")


def write_pretraining(folder: Path) -> Path:
    """Write a pre-training run that has finished its tokenizer, but not its generator."""
    stages = {"tokenizer_training": {"steps": 2}, "generator_training": {"steps": 4}}
    (folder / "generator").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "config.json").write_text(json.dumps({"tokenizer": {}, "start_from": "emoji-var", **stages}))
    data = {"items": 90, "class_names": ["a", "b", "c"], "held_out": list(range(5))}
    (folder / "data.json").write_text(json.dumps(data))
    write_rows(folder / "tokenizer/metrics.jsonl", [{"step": 1, "loss": 0.2}, {"step": 2, "loss": 0.1, "psnr": 20.0}])
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 2.0, "val_loss": 3.0},
        {"step": 3, "loss": 1, "val_loss": 3.5},
    ]
    write_rows(folder / "generator/metrics.jsonl", rows)
    for stage, step in (("tokenizer", 2), ("generator", 2), ("generator", 3)):
        images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        save_picture(grid(images, COLUMNS), folder / f"{stage}/samples/step-{step:06d}.png")
    return folder


def metrics(step: int) -> dict[str, float]:
    """Return the logged values of a step."""
    row = {"step": step, "reward_mean": step / 7, "reward_std": 0.1, "reward/dark": step / 7, "kl": step / 1000}
    row |= {"entropy": 2 - step / 100, "images_per_second": 20.0 + step % 3, "learning_rate": 1e-4}
    return row | ({"held_out/accuracy": 1 / step} if step % 100 == 0 else {})


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a file with one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def data_of(report: Path) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    scripts = re.findall(r'<script id="data" type="application/json">(.*?)</script>', report.read_text(), re.DOTALL)
    assert len(scripts) == 1
    return json.loads(scripts[0])
