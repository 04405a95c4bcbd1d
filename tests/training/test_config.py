"""Settings that a training config rejects before anything is loaded, and writing and reading configs."""

import dataclasses
import json
from typing import Any

import pytest
from errors import bad_input
from run_folders import version_0_1
from tiny import tiny_config

from sfumato.engine.engine_config import at_least
from sfumato.objectives import GDPO, GRPO, find_objective
from sfumato.training.train_config import to_json, upgraded


@pytest.mark.parametrize(
    ("changes", "field", "pieces"),
    [
        *(
            ({name: 0}, name, ("0", "1"))
            for name in (
                "steps", "groups_per_step", "minibatch_size", "micro_batch_size", "sample_batch_size", "sample_every",
                "save_every", "keep_checkpoints", "held_out_every",
            )
        ),
        *(
            ({name: -1}, name, ("-1", "0"))
            for name in (
                "warmup_steps", "seed", "eval_images", "guidance", "weight_decay", "final_learning_rate",
                "score_guidance",
            )
        ),
        ({"stop_when_hacking": True}, "stop_when_hacking", ("--held-out",)),
        ({"caption_template": "photo of {}"}, "caption_template", ("'photo of {}'", "{name}")),
        ({"group_size": 1}, "group_size", ("1", "2")),
        ({"temperature": 0.0}, "temperature", ("0.0",)),
        ({"top_k": 3}, "top_k", ()),
        ({"top_p": 0.5}, "top_k", ("top_p",)),
        ({"learning_rate": float("nan")}, "learning_rate", ("nan",)),
        ({"max_grad_norm": -1.0}, "max_grad_norm", ("-1.0",)),
        ({"reward_timeout": 0.0}, "reward_timeout", ("0.0", "above 0")),
        ({"max_unscored": 1.5}, "max_unscored", ("1.5",)),
        ({"reward": {}}, "reward", ()),
        ({"minibatch_size": 3}, "minibatch_size", ("3", "8")),
        ({"minibatch_size": 16}, "minibatch_size", ("16", "8")),
        ({"candidates": 3}, "candidates", ("3", "group_size 4")),
        ({"candidates": -1}, "candidates", ("-1", "0")),
    ],
)  # fmt: skip
def test_refused(changes: dict[str, Any], field: str, pieces: tuple[str, ...]):
    with bad_input(field, *pieces):
        tiny_config("x", **changes).validate()


@pytest.mark.parametrize("kind", [GRPO, GDPO])
@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"clip": 0.0}, "objective.clip", "0.0"),
        ({"clip": 1.0}, "objective.clip", "1.0"),
        ({"kl_weight": -0.1}, "objective.kl_weight", "-0.1"),
        ({"kl_weight": float("nan")}, "objective.kl_weight", "nan"),
    ],
)
def test_options_of_objectives_that_are_refused(kind: type, options: dict[str, float], field: str, value: str):
    with bad_input(field, value):
        kind(**options)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_images(processes: int):
    tiny_config("x").validate(processes)  # 8 images per step, 4 per minibatch


@pytest.mark.parametrize(("processes", "field", "value"), [(3, "groups_per_step", "8"), (8, "minibatch_size", "4")])
def test_processes_that_cannot_share_images(processes: int, field: str, value: str):
    with bad_input(field, value, str(processes), "give"):
        tiny_config("x").validate(processes)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config("x").steps = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("value", [0, -1.5, float("nan")])
def test_at_least(value: float):
    with bad_input("steps", str(value), "1"):
        at_least("steps", value, 1)
    at_least("steps", 1, 1)


@pytest.mark.parametrize("objective", [GRPO(clip=0.3, kl_weight=0.0, report_kl=True), GDPO(kl_weight=0.5)])
def test_objectives_are_read_as_written(objective: GRPO | GDPO):
    saved = json.loads(json.dumps(to_json(tiny_config("x", objective=objective))))
    options = dict(saved["objective"])
    assert find_objective(options.pop("name"))(**options) == objective
    assert upgraded(saved) == saved


@pytest.mark.parametrize(("combine", "name"), [("sum", "grpo"), ("gdpo", "gdpo")])
def test_settings_of_version_0_1(combine: str, name: str):
    today = to_json(tiny_config("x", guidance=None))
    old = version_0_1(today) | {"combine": combine}
    objective = {"name": name, "clip": 0.2, "kl_weight": 0.1}  # version 0.1 had no report_kl
    assert upgraded(old) == {**today, "objective": objective}
    assert old["guidance"] == 0.0  # version 0.1 stored no guidance as 0
