"""Objectives as parts of a run: credit, need for a reference, and lookup by name."""

import math
from pathlib import Path

import pytest
import torch
from errors import bad_input

from sfumato.objectives import GDPO, GRPO, OBJECTIVES, Credit, Objective, find_objective, name_of
from sfumato.objectives.advantages import decoupled_advantages, group_advantages
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request

SCORES = {
    "sharp": torch.tensor([0.0, 1.0, 5.0, 5.0]),
    "bright": torch.tensor([0.0, 100.0, 3.0, 1.0]),
    "logged": torch.tensor([9.0, 8.0, math.nan, 6.0]),
}
WEIGHTS = {"sharp": 1.0, "bright": 0.5, "logged": 0.0}


def batch() -> Batch:
    """Return two groups of two images."""
    rollout = Rollout(
        request=class_request([0, 0, 1, 1]),
        tokens=torch.zeros(4, 3, dtype=torch.int64),
        log_probs=torch.zeros(4, 3),
        entropy=torch.zeros(4, 3),
    )
    total = SCORES["sharp"] + 0.5 * SCORES["bright"]
    return Batch(rollout=rollout, rewards=total, scores=SCORES, weights=WEIGHTS, group_size=2)


def test_credit_of_grpo_is_that_of_the_summed_rewards():
    credit = GRPO().credit(batch())
    expected, _ = group_advantages(batch().rewards, 2)
    assert torch.equal(credit.weights, expected[:, None])
    assert credit.metrics == {"equal_groups": 0.0}


def test_credit_of_gdpo_is_that_of_each_reward_with_a_weight():
    credit = GDPO().credit(batch())
    counted = torch.stack([SCORES["sharp"], SCORES["bright"]])
    expected, _ = decoupled_advantages(counted, torch.tensor([1.0, 0.5]), 2)
    assert torch.equal(credit.weights, expected[:, None])
    assert credit.metrics == {"equal_groups": 0.0}
    assert not torch.equal(credit.weights, GRPO().credit(batch()).weights)


@pytest.mark.parametrize("objective", [GRPO(), GDPO()])
def test_equal_groups_are_counted(objective: Objective):
    whole = batch()
    scores = {"sharp": torch.tensor([0.0, 1.0, 5.0, 5.0])}
    part = Batch(rollout=whole.rollout, rewards=scores["sharp"], scores=scores, weights={"sharp": 1.0}, group_size=2)
    credit = objective.credit(part)
    assert credit.metrics == {"equal_groups": 0.5}
    assert credit.weights[2:].tolist() == [[0.0], [0.0]]
    assert credit.weights[1] == -credit.weights[0] != 0


def test_parts_of_a_credit():
    credit = Credit(weights=torch.arange(6.0).view(3, 2), metrics={"equal_groups": 0.5})
    assert credit[torch.tensor([2, 0])].weights.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert credit[1:].weights.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert credit[1:].metrics == {}  # metrics describe the whole batch


def test_a_reference_is_needed_for_the_kl_alone():
    needed = [GRPO(), GRPO(kl_weight=0.0), GRPO(kl_weight=0.0, report_kl=True), GDPO(), GDPO(kl_weight=0.0)]
    assert [objective.needs_reference for objective in needed] == [True, False, True, True, False]


def test_objectives_by_name():
    for name, kind in OBJECTIVES.items():
        objective = find_objective(name)()
        assert isinstance(objective, kind)
        assert isinstance(objective, Objective)
        assert name_of(objective) == name
    with bad_input("objective", "'grop'", "grpo"):
        find_objective("grop")
    with bad_input("objective", "'ppo!'", "grpo", "gdpo"):
        find_objective("ppo!")


OWN = """
from dataclasses import dataclass

from sfumato.objectives import GRPO, Credit


@dataclass(frozen=True, kw_only=True)
class Halved(GRPO):
    share: float = 0.5

    def credit(self, batch):
        credit = super().credit(batch)
        return Credit(weights=self.share * credit.weights, metrics=credit.metrics)


class Nothing:
    needs_reference = False


def credit(batch):
    return batch
"""


def test_an_objective_of_ones_own(tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    kind = find_objective(f"{file}:Halved")
    objective = kind(share=0.25, kl_weight=0.0)
    assert isinstance(objective, Objective)
    assert torch.equal(objective.credit(batch()).weights, 0.25 * GRPO().credit(batch()).weights)
    assert name_of(objective) == f"{file}:Halved"
    assert find_objective(name_of(objective)).__name__ == "Halved"
    with bad_input("objective", "Nothing", "credit", "loss"):
        find_objective(f"{file}:Nothing")
    with bad_input("objective", ":credit"):
        find_objective(f"{file}:credit")
    with bad_input("objective", "'Lost'", "Halved"):
        find_objective(f"{file}:Lost")
    with bad_input("objective", str(tmp_path / "none.py")):
        find_objective(f"{tmp_path / 'none.py'}:Halved")
