"""Reading and comparing run folders."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The logged steps without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds/", "images_per_second")
    return [{name: value for name, value in line.items() if not name.startswith(timings)} for line in lines]


def checkpoint_of(run: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a checkpoint."""
    folder = run / f"checkpoints/step-{step:06d}"
    return load_file(folder / "model/transformer.safetensors"), torch.load(folder / "state.pt", weights_only=True)


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Equal bit for bit: metrics, weights, optimizer and random state."""
    assert metrics_of(one) == metrics_of(other)
    (weights, state), (other_weights, other_state) = checkpoint_of(one, step), checkpoint_of(other, step)
    assert_equal(weights, other_weights)
    assert_equal(state, other_state)


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    """Equal bit for bit, through dicts and lists."""
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
