"""Images that share their first units: drawing, and credit."""

import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from golden_data import golden_llamagen, golden_var, llamagen_request
from rich.console import Console
from run_folders import metrics_of
from tiny import tiny_config, tiny_request, tiny_var, trainer_of

from sfumato.families import load_generator
from sfumato.objectives import GRPO
from sfumato.objectives.tree import TreeGRPO
from sfumato.policy import Policy
from sfumato.rollout import Batch, Fork, Rollout
from sfumato.settings import Settings
from sfumato.testing import class_request
from sfumato.training.train import fork_of, train

LABELS = torch.tensor([0, 2])
GENERATORS = {
    "var": (lambda: golden_var("a"), class_request([0, 3])),
    "var shared": (lambda: golden_var("b"), class_request([0, 3])),
    "llamagen": (lambda: golden_llamagen("c2i"), llamagen_request("c2i")[LABELS]),
    "llamagen text": (lambda: golden_llamagen("t2i", 4), llamagen_request("t2i")[LABELS]),
}
SETTINGS = [Settings(temperature=0.7), Settings(guidance=1.5, temperature=0.7)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", GENERATORS)
def test_forked_images_are_those_drawn_whole(name: str, settings: Settings):
    build, request = GENERATORS[name]
    policy = Policy(build(), settings)
    seeds, units = torch.tensor([5, 6]), policy.generator.units
    alone = policy.sample(request, seeds)
    three = request.repeat(3)
    others = torch.tensor([5, 15, 25, 6, 16, 26])
    for unit in sorted({1, len(units) // 2, len(units) - 1}):
        fork = Fork(unit=unit, continuations=3)
        # With equal seeds, all continuations are the image drawn alone.
        same = policy.sample(three, seeds.repeat_interleave(3), fork)
        assert torch.equal(same.tokens, alone.tokens.repeat_interleave(3, dim=0))
        torch.testing.assert_close(same.entropy, alone.entropy.repeat_interleave(3, dim=0), rtol=0, atol=1e-4)
        # With other seeds, they share what comes before the fork and differ after it.
        tree = policy.sample(three, others, fork)
        shared = sum(units[:unit])
        assert torch.equal(tree.tokens[:, :shared], same.tokens[:, :shared])
        assert torch.equal(tree.tokens[::3], alone.tokens)  # the seed of the first continuation draws all of it
        if shared + 1 < sum(units):  # a single token may be the same by chance
            assert not torch.equal(tree.tokens[1::3, shared:], alone.tokens[:, shared:])
        assert tree.request is three
        torch.testing.assert_close(tree.log_probs, policy.log_probs(three, tree.tokens), rtol=0, atol=1e-4)


def batch_of(rewards: list[float], group_size: int) -> Batch:
    """Return a batch of images with units of 1, 2 and 1 tokens."""
    zeros = torch.zeros(len(rewards), 4)
    rollout = Rollout(
        request=class_request([0] * len(rewards)),
        tokens=zeros.long(),
        log_probs=zeros,
        entropy=zeros,
        units=(1, 2, 1),
    )
    total = torch.tensor(rewards)
    return Batch(rollout=rollout, rewards=total, scores={}, weights={}, group_size=group_size)


def test_credit_by_hand():
    # Values 2 and 0: mean 1, standard deviation √2. Rewards 1 and 3 as well. The second group is equal.
    batch = batch_of([1.0, 3.0, 0.0, 0.0, 5.0, 5.0, 5.0, 5.0], 4)
    credit = TreeGRPO(fork_unit=2, continuations=2, kl_weight=0.0).credit(batch)
    a = 1 / math.sqrt(2)
    expected = [[a, a, a, -a], [a, a, a, a], [-a, -a, -a, 0], [-a, -a, -a, 0], *[[0.0] * 4] * 4]
    torch.testing.assert_close(credit.weights, torch.tensor(expected))
    assert credit.taught is not None
    assert credit.taught.tolist() == [True] * 4 + [False] * 4
    assert credit.metrics == {"equal_groups": 0.5, "equal_continuations": 0.75}


def test_images_without_a_score():
    # Values 3 (of one image) and 1: mean 2, standard deviation √2. A single score has no other to be compared with.
    credit = TreeGRPO(fork_unit=1, continuations=2).credit(batch_of([math.nan, 3.0, 0.0, 2.0], 4))
    a = 1 / math.sqrt(2)
    expected = [[0.0] * 4, [a, 0, 0, 0], [-a, -a, -a, -a], [-a, a, a, a]]
    torch.testing.assert_close(credit.weights, torch.tensor(expected))
    assert credit.taught is None  # the KL holds for all


def test_a_run_learns_from_trees(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, objective=TreeGRPO(fork_unit=1, kl_weight=0.1), sample_batch_size=3, redraws=1)
    trainer = trainer_of(config)
    trainer.engine._drawer = types.SimpleNamespace()  # type: ignore[assignment] (CUDA graphs, which draw no trees)
    trainer.engine.refresh = lambda: None
    batch, _ = trainer.collect(tiny_request([0] * 4 + [2] * 4))
    tokens = batch.rollout.tokens
    assert torch.equal(tokens[::2, 0], tokens[1::2, 0])
    assert not torch.equal(tokens[::2], tokens[1::2])
    for minibatch in batch.minibatches(4, torch.Generator().manual_seed(0)):  # trees are not divided
        first, second = minibatch[::2], minibatch[1::2]
        assert torch.equal(second, first + 1)
        assert (first % 2 == 0).all()
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    lines = metrics_of(tmp_path / "run")
    assert all(line["grad_norm"] > 0 and line["mismatch/mean"] < 1e-5 for line in lines)


@pytest.mark.parametrize(
    ("options", "changes", "field", "pieces"),
    [
        ({"continuations": 3}, {}, "objective.continuations", ("3", "group_size 4")),
        ({"continuations": 4}, {}, "objective.continuations", ("4", "group_size 4")),
        ({}, {"candidates": 8}, "candidates", ("8", "0")),
        ({"continuations": 3}, {"group_size": 6}, "minibatch_size", ("4", "3")),
        ({}, {"sample_batch_size": 1}, "sample_batch_size", ("1", "2")),
    ],
)
def test_settings_that_do_not_fit(
    options: dict[str, Any], changes: dict[str, Any], field: str, pieces: tuple[str, ...]
):
    with bad_input(field, *pieces):
        tiny_config("x", objective=TreeGRPO(**options), **changes).validate()


def test_forks_that_a_model_does_not_have():
    with bad_input("objective.fork_unit", "0", "1"):
        TreeGRPO(fork_unit=0)
    with bad_input("objective.continuations", "1", "2"):
        TreeGRPO(continuations=1)
    generator = tiny_var()
    assert fork_of(GRPO(), generator) is None
    assert fork_of(TreeGRPO(fork_unit=1, continuations=4), generator) == Fork(unit=1, continuations=4)
    with bad_input("objective.fork_unit", "2", "1"):
        fork_of(TreeGRPO(fork_unit=2), generator)
    bigram = load_generator(f"{Path(__file__).parents[2]}/examples/bigram.py:build")
    with bad_input("objective", "bigram", "grpo"):
        fork_of(TreeGRPO(fork_unit=1), bigram)
    config = tiny_config("x", objective=TreeGRPO(fork_unit=1), groups_per_step=1)
    config.validate(2)  # a tree for each process
    with bad_input("groups_per_step", "2 trees", "4"):
        config.validate(4)
