"""Objectives that learn from the first units only."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from golden_data import golden_llamagen, golden_var, llamagen_request
from rich.console import Console
from run_folders import metrics_of
from tiny import tiny_config, tiny_infinity, tiny_llamagen, tiny_request, tiny_switti, tiny_var, trainer_of

from sfumato.errors import UserError
from sfumato.families import load_generator
from sfumato.families.library import save_model
from sfumato.objectives import GRPO, PrefixGRPO
from sfumato.policy import Policy
from sfumato.recipes import TRAIN_RECIPES
from sfumato.rewards.pixels import brightness
from sfumato.rollout import Batch
from sfumato.settings import Settings
from sfumato.testing import class_request
from sfumato.training.train import prefix_probabilities, preview_of, train

SETTINGS = [Settings(temperature=0.7), Settings(guidance=1.5, temperature=0.7), Settings(guidance=2.0, top_k=5)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("variant", ["a", "b"])
@torch.no_grad()
def test_var_scores_first_scales_as_in_the_whole(variant: str, settings: Settings, positions: int):
    policy = Policy(golden_var(variant), settings, positions)
    rollout = policy.sample(class_request([0, 3, 9]), torch.tensor([5, 6, 7]))
    whole = policy.log_probs(rollout.request, rollout.tokens)
    for count in range(1, len(rollout.units) + 1):
        part = rollout.prefix(count)
        log_probs = policy.log_probs(part.request, part.tokens, part.units)
        assert log_probs.shape[1] == sum(policy.generator.units[:count])
        torch.testing.assert_close(log_probs, whole[:, : log_probs.shape[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("variant", "interval"), [("c2i", -1), ("t2i", 4)])
@torch.no_grad()
def test_llamagen_scores_first_tokens_as_in_the_whole(variant: str, interval: int, settings: Settings):
    policy = Policy(golden_llamagen(variant, interval), settings)
    request = llamagen_request(variant)[torch.tensor([0, 2, 3])]
    rollout = policy.sample(request, torch.tensor([5, 6, 7]))
    whole = policy.log_probs(request, rollout.tokens)
    for count in (1, 2, 7):
        part = rollout.prefix(count)
        log_probs = policy.log_probs(request, part.tokens, part.units)
        torch.testing.assert_close(log_probs, whole[:, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("generator", [tiny_var(), tiny_llamagen()], ids=["var", "llamagen"])
def test_incomplete_images_are_still_refused(generator: Any):
    assert generator.scores_prefixes
    policy = Policy(generator)
    tokens = policy.sample(tiny_request([0, 1]), torch.arange(2)).tokens
    with pytest.raises(UserError, match="tokens"):
        policy.log_probs(tiny_request([0, 1]), tokens[:, :-1])
    with pytest.raises(UserError, match="tokens"):
        policy.log_probs(tiny_request([0, 1]), tokens, policy.generator.units[:1])


def test_the_update_is_that_of_a_loss_on_these_tokens(tmp_path: Path):
    """The gradient equals that of GRPO on the whole images with the other tokens masked."""
    save_model(tmp_path / "model", tiny_var())
    config = tiny_config(tmp_path / "model", objective=PrefixGRPO(units=1, kl_weight=0.1))
    trainer = trainer_of(config)
    request = tiny_request([0] * 4 + [2] * 4)
    batch, _ = trainer.collect(request)
    first = trainer.engine.policy.generator.units[0]
    assert batch.rollout.tokens.shape == (8, first)
    assert batch.reference_log_probs is not None
    assert batch.reference_log_probs.shape == (8, first)
    whole, _ = trainer_of(tiny_config(tmp_path / "model", objective=GRPO(kl_weight=0.1))).collect(request)
    assert torch.equal(whole.rollout.tokens[:, :first], batch.rollout.tokens)
    assert torch.equal(whole.rewards, batch.rewards)  # of the whole images
    policy, objective = trainer.engine.policy, config.objective
    parameters = list(policy.generator.network.parameters())
    credit = objective.credit(batch)
    log_probs = policy.log_probs(request, batch.rollout.tokens, batch.rollout.units)
    cut, _ = objective.loss(log_probs, batch, credit)
    masked = policy.log_probs(request, whole.rollout.tokens)[:, :first]
    naive, _ = GRPO(kl_weight=0.1).loss(masked, batch, credit)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (cut, naive)]
    for mine, theirs in zip(*gradients, strict=True):
        expected = torch.zeros(()) if theirs is None else theirs
        found = torch.zeros(()) if mine is None else mine
        torch.testing.assert_close(found.sum(), expected.sum(), rtol=1e-4, atol=1e-7)
        assert (found.abs().max() - expected.abs().max()).abs() < 1e-6


def test_a_run_learns_from_the_first_scale(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, objective=PrefixGRPO(units=1, kl_weight=0.1))
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    lines = metrics_of(tmp_path / "run")
    assert all(line["grad_norm"] > 0 and line["kl"] >= 0 for line in lines)
    assert all(line["mismatch/mean"] < 1e-5 for line in lines)


def test_a_run_of_the_fast_recipe(tiny_model: Path, tmp_path: Path):
    recipe = TRAIN_RECIPES["emoji-dark-fast"].build()
    assert isinstance(recipe.objective, PrefixGRPO)
    config = tiny_config(tiny_model, objective=replace(recipe.objective, units=1), reward=recipe.reward)
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    lines = metrics_of(tmp_path / "run")
    assert all(line["grad_norm"] > 0 and line["kl"] >= 0 for line in lines)
    assert all(
        line["reward_mean"] == pytest.approx(line["reward/dark"] + 2 * line["reward/emoji-clip"], abs=1e-5)
        for line in lines
    )


def test_what_does_not_fit_the_model_leaves_no_folder(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, objective=PrefixGRPO(units=3))
    with bad_input("objective.units", "3", "2"):
        train(config, tmp_path / "run", console=Console(quiet=True))
    assert not list(tmp_path.glob("run/*"))


def test_weighted_prefix_is_scale_grpo_of_these_scales():
    """The tokens of the kept scales have the weights n^-alpha, whose mean over them is 1; without alpha it is GRPO."""
    policy = Policy(tiny_var(), Settings())
    rollout = policy.sample(tiny_request([0, 0, 1, 1]), torch.arange(4))
    batch = Batch(
        rollout=rollout, rewards=torch.tensor([0.0, 1.0, 3.0, 2.0]), scores={}, weights={}, group_size=2,
        reference_log_probs=None, metrics={},
    )  # fmt: skip
    plain, weighted = (PrefixGRPO(units=2, alpha=alpha).credit(batch).weights for alpha in (0.0, 1.0))
    advantages = GRPO().credit(batch).weights
    torch.testing.assert_close(plain, advantages.expand(4, 5))
    scales = torch.tensor([1.0, 0.25, 0.25, 0.25, 0.25]) * 5 / 2  # two scales of 1 and 4 tokens
    torch.testing.assert_close(weighted, advantages * scales)
    first = replace(batch, rollout=rollout.prefix(1))
    torch.testing.assert_close(PrefixGRPO(units=1, alpha=1.0).credit(first).weights, advantages)


def test_units_that_a_model_does_not_have():
    generator = tiny_var()
    assert prefix_probabilities(GRPO(), generator) == ()
    assert prefix_probabilities(PrefixGRPO(units=2), generator) == (0.0, 1.0)
    with bad_input("objective.units", "3", "2"):
        prefix_probabilities(PrefixGRPO(units=3), generator)
    with bad_input("objective.units", "0"):
        PrefixGRPO(units=0)
    bigram = load_generator(f"{Path(__file__).parents[2]}/examples/bigram.py:build")
    with bad_input("objective", "bigram", "whole images"):
        prefix_probabilities(PrefixGRPO(units=1), bigram)


def test_a_preview_is_drawn_decoded_and_scored_alone(tmp_path: Path):
    """The first scales are those of whole images, and the rewards those of what they alone decode to."""
    save_model(tmp_path / "model", tiny_var())
    request = tiny_request([0] * 4 + [2] * 4)
    config = tiny_config(tmp_path / "model", objective=PrefixGRPO(units=1, preview=True))
    trainer = trainer_of(config)
    generator: Any = trainer.engine.policy.generator
    units, step = generator.units, generator.step
    steps: list[int] = []
    generator.step = lambda state, drawn: (steps.append(state.scale), step(state, drawn))[1]
    batch, _ = trainer.collect(request)
    assert set(steps) == {0}  # the other scale is not drawn
    assert (batch.rollout.units, batch.rollout.whole_units) == (units[:1], units)
    whole, _ = trainer_of(tiny_config(tmp_path / "model", objective=PrefixGRPO(units=1))).collect(request)
    assert torch.equal(batch.rollout.tokens, whole.rollout.tokens)
    assert torch.equal(batch.rollout.log_probs, whole.rollout.log_probs)
    tokenizer = generator.tokenizer
    features = tokenizer.quantizer.upsample(0, tokenizer.quantizer.embed(batch.rollout.tokens))
    torch.testing.assert_close(batch.rewards, brightness(tokenizer.reconstruct(features), request.words))
    assert (batch.rewards - whole.rewards).abs().max() > 1e-3


@pytest.mark.parametrize("build", [lambda: golden_var("a"), tiny_switti, lambda: tiny_infinity(words=True)])
@torch.no_grad()
def test_previews_of_next_scale_families(build: Callable[[], Any]):
    """The image of all scales is the image. A preview is that of an image whose other scales add nothing."""
    generator = build()
    units, count = generator.units, len(generator.units)
    tokens = torch.randint(2, (2, sum(units)), generator=torch.Generator().manual_seed(0))
    policy = Policy(generator)
    image = policy.decode(tokens)
    assert torch.equal(policy.decode(tokens, count), image)
    first = tokens[:, : sum(units[:-1])]
    preview = policy.decode(first, count - 1)
    assert preview.shape == image.shape
    assert (preview - image).abs().max() > 1e-4
    tokenizer = generator.tokenizer
    last = tokenizer.quantizer if hasattr(tokenizer, "quantizer") else tokenizer
    last.upsample = upsample_but(last.upsample, count - 1)
    torch.testing.assert_close(policy.decode(tokens), preview, rtol=0, atol=1e-6)


def upsample_but(upsample: Callable[..., torch.Tensor], without: int) -> Callable[..., torch.Tensor]:
    return lambda scale, codes: upsample(scale, codes) * (scale != without)


def test_previews_of_a_model_without_any():
    assert preview_of(PrefixGRPO(units=1), tiny_llamagen()) is None
    assert preview_of(PrefixGRPO(units=2, preview=True), tiny_var()) == 2
    with bad_input("objective.preview", "llamagen", "whole images"):
        preview_of(PrefixGRPO(units=1, preview=True), tiny_llamagen())
    with bad_input("objective.units", "3", "2"):
        preview_of(PrefixGRPO(units=3, preview=True), tiny_var())
