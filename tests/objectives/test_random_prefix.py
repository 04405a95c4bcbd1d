"""GRPO on a random number of first units."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from rich.console import Console
from run_folders import assert_same_run, metrics_of
from tiny import tiny_config, tiny_llamagen, tiny_request, tiny_var, trainer_of
from torch import Tensor

from sfumato.families.library import save_model
from sfumato.objectives import GRPO
from sfumato.objectives.random_prefix import RandomPrefixGRPO, token_factors
from sfumato.rollout import Batch
from sfumato.training.train import train


def cut(batch: Batch, count: int) -> Batch:
    """Return a batch with the tokens of the first units only."""
    part = batch.rollout.prefix(count)
    assert batch.reference_log_probs is not None
    return replace(batch, rollout=part, reference_log_probs=batch.reference_log_probs[:, : part.tokens.shape[1]])


@pytest.mark.parametrize("build", [tiny_var, tiny_llamagen])
@pytest.mark.parametrize("whole", [0.25, 0.6, 1.0])
def test_expected_gradient_is_that_of_all_units(build: Any, whole: float, tmp_path: Path):
    generator = build()
    save_model(tmp_path / "model", generator)
    trainer = trainer_of(tiny_config(tmp_path / "model", objective=GRPO(kl_weight=0.5)))
    batch, _ = trainer.collect(tiny_request([0] * 4 + [2] * 4))
    policy, network = trainer.policy, trainer.policy.generator.network
    with torch.no_grad(), torch.random.fork_rng():  # away from the policy that drew: clipped ratios, and a KL
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    seen: list[dict[str, Tensor]] = []

    def gradient(objective: GRPO, batch: Batch) -> Tensor:
        drawn = batch.rollout
        log_probs = policy.log_probs(drawn.request, drawn.tokens, drawn.units)
        loss, figures = objective.loss(log_probs, batch, objective.credit(batch))
        seen.append(figures)
        parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    objective, count = RandomPrefixGRPO(whole=whole, kl_weight=0.5), len(generator.units)
    probabilities = objective.prefix_probabilities(count)
    assert sum(probabilities) == pytest.approx(1)
    expected = torch.zeros(())
    for number, probability in enumerate(probabilities, 1):
        if probability > 0:
            expected = expected + probability * gradient(objective, cut(batch, number))
    full = gradient(GRPO(kl_weight=0.5), batch)
    assert full.abs().max() > 0.01
    assert seen[-1]["kl"] > 0 < seen[-1]["clip_fraction"]
    torch.testing.assert_close(expected, full, rtol=0, atol=1e-6)


def test_probabilities_and_factors_by_hand():
    # Units 1, 2, 3 are kept with 1, 1/2, 1/4.
    objective = RandomPrefixGRPO(whole=0.25)
    assert objective.prefix_probabilities(3) == pytest.approx((0.5, 0.25, 0.25))
    assert objective.prefix_probabilities(1) == (1.0,)
    # 3 of 7 tokens are kept: 1 · 3/7, and 2 · 3/7 for the second unit.
    factors = token_factors((1, 2), (1, 2, 4), 0.25)
    torch.testing.assert_close(factors, torch.tensor([3, 6, 6]) / 7)
    assert token_factors((1, 2, 4), (1, 2, 4), 1.0).tolist() == [1.0] * 7


@pytest.mark.parametrize("whole", [0.0, -0.5, 1.5, float("nan")])
def test_refused(whole: float):
    with bad_input("objective.whole", str(whole)):
        RandomPrefixGRPO(whole=whole)


def test_resumed_equals_uninterrupted(tiny_model: Path, tmp_path: Path):
    console = Console(quiet=True)
    config = tiny_config(tiny_model, objective=RandomPrefixGRPO(whole=0.5, kl_weight=0.1), steps=6, save_every=3)
    assert train(config, tmp_path / "whole", console=console)
    kept = [line["kept_units"] for line in metrics_of(tmp_path / "whole")]
    assert set(kept) == {1, 2}
    assert train(replace(config, steps=3), tmp_path / "run", console=console)
    assert train(config, tmp_path / "run", resume=True, console=console)
    assert_same_run(tmp_path / "run", tmp_path / "whole", 6)
