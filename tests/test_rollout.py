"""Conditions and rollouts: indexing, repeating, splitting."""

import pytest
import torch

from sfumato.rollout import Conditions, Rollout, concatenate


def conditions() -> Conditions:
    return Conditions(labels=torch.tensor([7, 8, 9]), names=("seven", "eight", "nine"))


def rollout() -> Rollout:
    return Rollout(
        conditions=conditions(),
        tokens=torch.arange(6).reshape(3, 2),
        log_probs=-torch.arange(6.0).reshape(3, 2),
        entropy=10 + torch.arange(6.0).reshape(3, 2),
    )


def test_indexing():
    assert conditions()[torch.tensor([2, 0])].names == ("nine", "seven")
    assert conditions()[torch.tensor([2, 0])].labels.tolist() == [9, 7]
    assert conditions()[1:].names == ("eight", "nine")
    assert conditions()[1:].labels.tolist() == [8, 9]
    assert len(conditions()[:0]) == 0


def test_repeat_keeps_copies_together():
    repeated = conditions().repeat(2)
    assert repeated.labels.tolist() == [7, 7, 8, 8, 9, 9]
    assert repeated.names == ("seven", "seven", "eight", "eight", "nine", "nine")


def test_every_label_has_a_name():
    with pytest.raises(ValueError, match="names: 1 names for 2 labels"):
        Conditions(labels=torch.tensor([0, 1]), names=("one",))


def test_parts_of_a_rollout():
    part = rollout()[torch.tensor([2, 0])]
    assert part.conditions.names == ("nine", "seven")
    assert part.tokens.tolist() == [[4, 5], [0, 1]]
    assert part.log_probs.tolist() == [[-4.0, -5.0], [0.0, -1.0]]
    assert part.entropy.tolist() == [[14.0, 15.0], [10.0, 11.0]]


def test_split_and_concatenate_are_inverse():
    parts = list(rollout().split(2))
    assert [len(part) for part in parts] == [2, 1]
    whole = concatenate(parts, conditions())
    assert whole.conditions.names == conditions().names
    for name in ("tokens", "log_probs", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(rollout(), name))
    assert torch.equal(whole.conditions.labels, conditions().labels)
