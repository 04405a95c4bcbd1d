"""Rollouts and scored batches: indexing, splitting, minibatches."""

import torch

from sfumato.request import ClassInputs, Request
from sfumato.rollout import Batch, Rollout, concatenate
from sfumato.testing import class_request


def request() -> Request:
    return class_request([7, 8, 9], ("seven", "eight", "nine"))


def rollout() -> Rollout:
    return Rollout(
        request=request(),
        tokens=torch.arange(6).reshape(3, 2),
        log_probs=-torch.arange(6.0).reshape(3, 2),
        entropy=10 + torch.arange(6.0).reshape(3, 2),
    )


def batch(reference: bool = True) -> Batch:
    return Batch(
        rollout=rollout(),
        rewards=torch.tensor([1.0, 2.0, 3.0]),
        scores={"sharp": torch.tensor([4.0, 5.0, 6.0]), "bright": torch.tensor([7.0, 8.0, 9.0])},
        weights={"sharp": 1.0, "bright": 0.5},
        group_size=3,
        reference_log_probs=-2 * torch.arange(6.0).reshape(3, 2) if reference else None,
        metrics={"reward": 2.0},
    )


def test_parts_of_a_rollout():
    part = rollout()[torch.tensor([2, 0])]
    assert part.request.words.names == ("nine", "seven")
    assert isinstance(part.request.inputs, ClassInputs)
    assert part.request.inputs.labels.tolist() == [9, 7]
    assert part.tokens.tolist() == [[4, 5], [0, 1]]
    assert part.log_probs.tolist() == [[-4.0, -5.0], [0.0, -1.0]]
    assert part.entropy.tolist() == [[14.0, 15.0], [10.0, 11.0]]


def test_split_and_concatenate_are_inverse():
    parts = list(rollout().split(2))
    assert [len(part) for part in parts] == [2, 1]
    whole = concatenate(parts, request())
    assert whole.request.words.names == request().words.names
    for name in ("tokens", "log_probs", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(rollout(), name))
    assert torch.equal(whole.request.words.labels, request().words.labels)


def test_parts_of_a_batch():
    part = batch()[torch.tensor([2, 0])]
    assert len(part) == 2
    assert part.rollout.tokens.tolist() == [[4, 5], [0, 1]]
    assert part.rewards.tolist() == [3.0, 1.0]
    assert {name: scores.tolist() for name, scores in part.scores.items()} == {"sharp": [6, 4], "bright": [9, 7]}
    assert (part.weights, part.group_size) == (batch().weights, 3)
    assert part.reference_log_probs is not None
    assert part.reference_log_probs.tolist() == [[-8.0, -10.0], [0.0, -2.0]]
    assert part.metrics == {}  # metrics describe the whole batch
    assert batch(reference=False)[1:].reference_log_probs is None


def test_minibatches_have_every_image_once_in_random_order():
    parts = [batch().minibatches(2, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all([len(part) for part in minibatches] == [2, 1] for minibatches in parts)
    orders = [tuple(torch.cat(minibatches).tolist()) for minibatches in parts]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(set(orders)) == 6
