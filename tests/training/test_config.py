"""What a GRPO config refuses before anything is loaded."""

import dataclasses

import pytest
from tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: 0}, f"{name}: 0 is too small; give at least 1")
            for name in (
                "steps", "labels_per_step", "minibatch_size", "micro_batch_size", "sample_batch_size", "sample_every",
                "save_every", "keep_checkpoints",
            )
        ),
        *(
            ({name: -1}, f"{name}: -1 is too small; give at least 0")
            for name in ("warmup_steps", "seed", "eval_images", "guidance", "weight_decay", "final_learning_rate")
        ),
        ({"stop_when_hacking": True}, "stop_when_hacking: nothing is measured; name rewards with --held-out"),
        ({"caption_template": "photo of {}"}, "caption_template: 'photo of {}' has no {name}; write it in"),
        ({"group_size": 1}, "group_size: 1 is too small; give at least 2"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: -1.0 must be above 0"),
        ({"reward": {}}, "reward: none is given"),
        ({"minibatch_size": 3}, "minibatch_size: 3 does not divide the 8 images a step"),
        ({"minibatch_size": 16}, "minibatch_size: 16 does not divide the 8 images a step"),
    ],
)  # fmt: skip
def test_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        tiny_config("x", **changes).validate()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("workers", "field"), [(2, None), (4, "labels_per_step"), (3, "labels_per_step")])
def test_number_of_processes(workers: int, field: str | None):
    config = tiny_config("x")
    if field is None:
        config.validate(workers)
        return
    with pytest.raises(ValueError, match=f"{field}: 2 is not a multiple of the {workers} processes"):
        config.validate(workers)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config("x").steps = 3  # pyright: ignore[reportAttributeAccessIssue]
