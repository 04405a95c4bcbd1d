"""Batches from the images of a data set, and runs that learn from these."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import metrics_of
from tiny import CLASS_NAMES, CPU, tiny_config, tiny_llamagen, tiny_request, tiny_var

from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.families import load_generator
from sfumato.families.library import save_model
from sfumato.objectives.cca import CCA
from sfumato.objectives.va_pi import VAPi
from sfumato.policy import Policy
from sfumato.rewards import build_reward
from sfumato.rollout import Batch
from sfumato.rollouts.dataset import DataSet, open_data_set
from sfumato.settings import Settings
from sfumato.training.requests import build_data_set, check_request
from sfumato.training.train import build_data_rollouts, build_engine, train
from sfumato.training.train_config import TrainConfig, from_json

SETTINGS = Settings(guidance=1.5, temperature=0.7)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random pictures of each class of the tiny models, which they would cut and scale to their size."""
    folder, rng = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    for name in CLASS_NAMES:
        (folder / name).mkdir()
        for number in range(2):
            pixels = torch.randint(256, (12, 10, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer tells images apart: its features have the mean and the spread of the codebook."""
    generator, rng = tiny_var(), torch.Generator().manual_seed(0)
    tokenizer = generator.tokenizer
    features = tokenizer.features(torch.rand(64, 3, 8, 8, generator=rng))
    scale = tokenizer.quantizer.codebook.weight.std() / features.std((0, 2, 3))
    with torch.no_grad():
        tokenizer.pre_conv.weight.mul_(scale[:, None, None, None])
        assert tokenizer.pre_conv.bias is not None
        tokenizer.pre_conv.bias.sub_(features.mean((0, 2, 3))).mul_(scale)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, generator)
    return folder


def data_config(model: Path, pictures: Path, objective: Any, **changes: Any) -> TrainConfig:
    return tiny_config(model, objective=objective, data=str(pictures), micro_batch_size=3, **changes)


def next_batch(config: TrainConfig, process: Process = CPU) -> tuple[Batch, Policy]:
    """Return the first batch of a run, and its policy."""
    config.validate()
    generator = load_generator(config.model)
    data = build_data_set(config, generator)
    assert data is not None
    engine = build_engine(config, Policy(generator, config.policy), CPU)
    rollouts = build_data_rollouts(config, engine, process, data, build_reward(config.reward))
    rng = torch.Generator().manual_seed(config.seed)
    return rollouts.next(rng, PhaseTimer(torch.device("cpu"))), engine.policy


@pytest.mark.parametrize("generator", [tiny_var(), tiny_llamagen()], ids=["var", "llamagen"])
def test_tokens_drawn_given_others(generator: Any):
    policy, request, seeds = Policy(generator, SETTINGS), tiny_request([0, 3]), torch.tensor([5, 6])
    free = policy.sample(request, seeds)
    # Given what the policy draws freely, the same random numbers lead to the same tokens.
    drawn = policy.sample_given(request, free.tokens, seeds)
    assert torch.equal(drawn.tokens, free.tokens)
    torch.testing.assert_close(drawn.log_probs, free.log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.entropy, free.entropy, rtol=0, atol=1e-5)
    other = policy.sample_given(request, free.tokens, seeds + 1)
    first = generator.units[0]
    assert not torch.equal(other.tokens[:, first:], free.tokens[:, first:])
    again = policy.log_probs(request, other.tokens, other.units, other.context)
    torch.testing.assert_close(again, other.log_probs, rtol=0, atol=1e-5)
    logits = generator.logits(request.inputs, free.tokens, SETTINGS) / 0.7
    expected = logits.log_softmax(-1).gather(-1, other.tokens[..., None])[..., 0]
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
    own = policy.log_probs(request, other.tokens)  # given themselves, all but the first have other probabilities
    torch.testing.assert_close(own[:, :first], again[:, :first], rtol=0, atol=1e-5)
    assert (own - again)[:, first:].abs().max() > 0.01
    both = policy.log_probs_and_entropy(request, other.tokens, other.units, other.context)
    torch.testing.assert_close(both[0], again, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], other.entropy, rtol=0, atol=1e-5)
    part = other[torch.tensor([1])]
    assert part.context is not None
    assert torch.equal(part.context, free.tokens[1:])


def test_each_image_under_two_conditions(model: Path, pictures: Path):
    batch, policy = next_batch(data_config(model, pictures, CCA()))
    words, tokens, generator = batch.rollout.request.words, batch.rollout.tokens, policy.generator
    assert torch.equal(tokens[::2], tokens[1::2])
    known = open_data_set(str(pictures), generator)
    encoded = generator.encode(known.source[torch.arange(10)][0])
    for row in range(8):
        possible = {known.words.names[i] for i in range(10) if torch.equal(encoded[i], tokens[row])}
        assert (words.names[row] in possible) == bool(batch.rewards[row])
    assert batch.rewards[::2].tolist() == [1.0] * 4
    assert sorted(words.names[::2]) == sorted(words.names[1::2])  # every condition is as often wrong as right
    torch.testing.assert_close(batch.rollout.log_probs, policy.log_probs(batch.rollout.request, tokens))
    torch.testing.assert_close(batch.reference_log_probs, batch.rollout.log_probs)  # before any update
    difference = (batch.rollout.log_probs[::2] - batch.rollout.log_probs[1::2]).mean(1)
    assert batch.metrics["reward_mean"] == pytest.approx(difference.mean().item(), abs=1e-6)
    assert batch.metrics["reward_std"] == pytest.approx(difference.std().item(), abs=1e-6)


def test_a_condition_met_by_chance_is_the_own_one(model: Path, pictures: Path):
    batch, _ = next_batch(data_config(model, pictures, CCA(), classes=("bee",)))
    assert set(batch.rollout.request.words.names) == {"bee"}
    assert batch.rewards.tolist() == [1.0] * 8
    assert batch.metrics["reward_mean"] == pytest.approx(0.0, abs=1e-6)


def test_reconstructions_are_drawn_given_the_image(model: Path, pictures: Path):
    batch, policy = next_batch(data_config(model, pictures, VAPi()))
    rollout, generator = batch.rollout, policy.generator
    assert rollout.context is not None
    assert torch.equal(rollout.tokens[::4], rollout.context[::4])
    assert torch.equal(rollout.context, rollout.context[::4].repeat_interleave(4, 0))
    assert batch.rewards.isnan().nonzero()[:, 0].tolist() == [0, 4]
    torch.testing.assert_close(
        rollout.log_probs, policy.log_probs(rollout.request, rollout.tokens, rollout.units, rollout.context)
    )
    known = open_data_set(str(pictures), generator)
    images, _ = known.source[torch.arange(10)]
    encoded = generator.encode(images)
    numbers = [next(i for i in range(10) if torch.equal(encoded[i], context)) for context in rollout.context]
    assert [known.words.names[i] for i in numbers] == list(rollout.request.words.names)
    errors = (2 * generator.decode(rollout.tokens) - 2 * images[numbers]).square().mean((1, 2, 3))
    torch.testing.assert_close(batch.rewards[[1, 2, 3, 5, 6, 7]], -errors[[1, 2, 3, 5, 6, 7]])
    assert batch.metrics["reward_limit"] == pytest.approx(-errors[[0, 4]].mean().item())
    assert batch.metrics["reward_mean"] == pytest.approx(batch.rewards.nanmean().item())
    assert batch.metrics["unscored"] == 0.0
    assert len(set(batch.rewards[1:4].tolist())) > 1


@pytest.mark.parametrize("objective", [CCA(), VAPi()], ids=["cca", "va-pi"])
def test_processes_share_a_batch(objective: Any, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    config = data_config(model, pictures, objective)
    whole, _ = next_batch(config)
    monkeypatch.setattr(Process, "gather", lambda self, tensor: torch.cat([tensor, tensor]))  # as if equal
    parts = [next_batch(config, replace(CPU, rank=rank, count=2))[0] for rank in range(2)]
    assert torch.equal(torch.cat([part.rollout.tokens[:4] for part in parts]), whole.rollout.tokens)
    log_probs = torch.cat([part.rollout.log_probs[:4] for part in parts])
    torch.testing.assert_close(log_probs, whole.rollout.log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", [CCA(mismatch_weight=2.0), VAPi()], ids=["cca", "va-pi"])
def test_runs_learn_from_a_data_set(objective: Any, model: Path, pictures: Path, tmp_path: Path):
    config = data_config(model, pictures, objective, steps=2, eval_images=4, minibatch_size=8)
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    lines = metrics_of(tmp_path / "run")
    assert all(line["grad_norm"] > 0 and line["mismatch/max"] < 1e-5 for line in lines)
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert from_json(saved) == config
    measured = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert measured["before"]["reward/brightness"] != measured["after"]["reward/brightness"]


def test_cca_raises_the_difference_of_conditions(model: Path, pictures: Path, tmp_path: Path):
    objective, rates = CCA(beta=0.1, mismatch_weight=1.0), {"learning_rate": 1e-2, "final_learning_rate": 1e-2}
    config = data_config(model, pictures, objective, steps=8, groups_per_step=4, minibatch_size=16, **rates)
    config = replace(config, sample_every=100, save_every=100)
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    rewards = [line["reward_mean"] for line in metrics_of(tmp_path / "run")]
    assert rewards[-1] > rewards[0] + 0.1


def test_captions_describe_images_to_models_that_read_them(pictures: Path, tmp_path: Path):
    generator = tiny_llamagen(text=True)
    (tmp_path / "one").mkdir()
    Image.open(pictures / "bee/0.png").save(tmp_path / "one/0.png")
    (tmp_path / "one/0.txt").write_text("a bee on a leaf\n")
    data = open_data_set(str(tmp_path), generator)
    assert data.words.names == ("a bee on a leaf",)
    assert data.source[torch.tensor([0])][0].shape == (1, 3, 12, 12)
    assert data.pick(3, torch.Generator()).tolist() == [0, 0, 0]


def test_bad_data(model: Path, pictures: Path, tmp_path: Path):
    good = data_config(model, pictures, CCA())
    with bad_input("data", "cca", "folder"):
        replace(good, data=None).validate()
    with bad_input("data", "grpo", str(pictures)):
        replace(good, objective=tiny_config(model).objective).validate()
    with bad_input("redraws", "2", "cca"):
        replace(good, redraws=2).validate()
    with bad_input("candidates", "8", "cca"):
        replace(good, candidates=8).validate()
    with bad_input("guidance", "1.5", "cca"):
        replace(good, policy=SETTINGS).validate()
    with bad_input("groups_per_step", "3 groups", "even"):
        replace(good, groups_per_step=3, group_size=3, minibatch_size=3).validate()
    with bad_input("group_size", "2", "3"):
        replace(good, objective=VAPi(), group_size=2).validate()
    with bad_input("data", "nowhere"):
        check_request(replace(good, data="nowhere"), CLASS_NAMES)
    (tmp_path / "fly").mkdir()
    Image.open(pictures / "bee/0.png").save(tmp_path / "fly/0.png")
    with bad_input("data", "'fly'"):
        open_data_set(str(tmp_path), tiny_var())
    (tmp_path / "fly").rename(tmp_path / "ant")
    with bad_input("classes", str(tmp_path)):
        open_data_set(str(tmp_path), tiny_var(), classes=[2])


def test_images_are_picked_by_weight(pictures: Path):
    known = open_data_set(str(pictures), tiny_var())
    data = DataSet(known.source, known.words, torch.tensor([1.0, 0.0, 3.0]))
    rng = torch.Generator().manual_seed(0)
    assert sorted(data.pick(2, rng).tolist()) == [0, 2]
    picked = data.pick(1000, rng)
    assert not (picked == 1).any()
    assert (picked == 2).float().mean().item() == pytest.approx(0.75, abs=0.05)
