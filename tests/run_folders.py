"""Read and compare run folders, and convert them to the format of version 0.1."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def metrics_of(run: Path) -> list[dict[str, float]]:
    """Return the logged steps without timings and memory."""
    timings = ("seconds/", "images_per_second", "peak_memory")
    lines = lines_of(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(timings)} for line in lines]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoint_of(run: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the state of a checkpoint: of the engine, of random choices and of rewards."""
    folder = run / f"checkpoints/step-{step:06d}"
    engine, choices = (torch.load(folder / name, weights_only=True) for name in ("engine.pt", "state.pt"))
    assert engine.keys() == {"optimizer", "base"}
    assert choices.keys() == {"step", "rng", "rewards"}
    return load_file(folder / "model/transformer.safetensors"), engine | choices


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Check that metrics, weights, optimizer and random state are bit-identical."""
    assert metrics_of(one) == metrics_of(other)
    (weights, state), (other_weights, other_state) = checkpoint_of(one, step), checkpoint_of(other, step)
    assert_equal(weights, other_weights)
    assert_equal(state, other_state)


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    """Check that values, including nested dicts and lists, are bit-identical."""
    assert type(one) is type(other), path
    if isinstance(one, Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{path}/{number}")
    else:
        assert one == other, path


def version_0_1(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's `config.json` in the format of version 0.1: all settings on one level, and 0 for no guidance."""
    config = dict(config)
    policy, objective, engine = (config.pop(name) for name in ("policy", "objective", "engine"))
    loss = {name: objective[name] for name in ("clip", "kl_weight")}
    sampling = {"temperature": policy["temperature"], "guidance": policy["guidance"] or 0.0}
    groups = {"labels_per_step": config.pop("groups_per_step")}
    return {**config, **groups, **sampling, **engine, "loss": loss, "combine": "sum"}


def make_version_0_1(run: Path) -> None:
    """Convert a run folder to the format of version 0.1.

    It has one state file per checkpoint, models with "inference" and without a judge, and held-out values under their
    old names.
    """
    config = run / "config.json"
    config.write_text(json.dumps(version_0_1(json.loads(config.read_text()))))
    for checkpoint in (run / "checkpoints").iterdir():
        engine, choices = (torch.load(checkpoint / name, weights_only=True) for name in ("engine.pt", "state.pt"))
        del choices["rewards"]
        torch.save({**engine, **choices}, checkpoint / "state.pt")
        (checkpoint / "engine.pt").unlink()
        card = json.loads((checkpoint / "model/config.json").read_text())
        card["inference"] = card.pop("settings")
        del card["judge"]
        (checkpoint / "model/config.json").write_text(json.dumps(card))
    for path in run.glob("held_out.jsonl"):
        path.write_text(path.read_text().replace("optimized", "optimised"))
