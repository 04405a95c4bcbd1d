"""Named sums of rewards."""

import torch
from errors import bad_input

from sfumato.rewards import COMPOSITIONS, REWARDS
from sfumato.rewards.compositions import expand
from sfumato.rewards.names import PART_OPTIONS, build_part, split_options
from sfumato.rewards.pixels import brightness


def test_ar_grpo_has_the_eight_parts():
    assert expand({"ar-grpo": 1.0}) == {
        "clip?scale=5": 1, "hps?scale=5": 1, "clip?levels=0.5,1,1.5": 1, "hps?levels=0.5,1,1.5": 1,
        "maniqa?scale=2": 1, "judge?aspect=quality&scale=0.25": 1, "judge?aspect=real&scale=0.25": 1,
        "judge?aspect=strange&scale=0.25": 1,
    }  # fmt: skip


def test_ar_grpo_as_released():
    parts = expand({"ar-grpo-released": 1.0})
    assert set(parts.values()) == {1}
    assert len(parts) == 8
    name = next(part for part in parts if part.startswith("hps?levels"))
    quantised = build_part(name.replace("hps", "brightness"), 1.0, {"brightness": brightness})
    scores = torch.tensor([-0.1, 0.0, 0.29, 0.3, 0.59, 0.6, 0.9])
    assert quantised.adjust(scores).tolist() == [-1, 0.5, 0.5, 1, 1, 1.5, 1.5]


def test_a_composition_among_others():
    assert expand({"var-painting": 2.0, "clip?prompt=a painting": 1.0, "dark": -1.0}) == {
        "clip?prompt=a painting": 3,
        "dark": -1,
    }


def test_options_of_parts():
    parts = expand({"ar-grpo-c?judge.endpoint=http://127.0.0.1:8000/v1&clip.model=/models/clip": 1.0})
    assert "clip?scale=5&model=/models/clip" in parts
    assert "judge?aspect=real&scale=0.25&endpoint=http://127.0.0.1:8000/v1" in parts
    assert "hps?scale=5" in parts
    parts = expand({"ar-grpo-a?hps.thresholds=0.2,0.3": 1.0})
    assert [part for part in parts if "hps" in part] == ["hps?scale=5", "hps?levels=0.5,1,1.5&thresholds=0.2,0.3"]
    with bad_input("reward", "'var-aesthetic?model=x'", "'model=x'", "aesthetic.model=x"):
        expand({"var-aesthetic?model=x": 1.0})


def test_every_part_exists_with_its_options():
    for parts in COMPOSITIONS.values():
        for part in parts:
            base, _, query = part.partition("?")
            fields = getattr(REWARDS[base].make, "__dataclass_fields__")  # noqa: B009
            assert set(split_options(part, query)) <= {*fields, *PART_OPTIONS}
