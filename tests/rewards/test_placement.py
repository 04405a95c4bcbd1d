"""Rewards on a device of their own, and the precision of their networks."""

from pathlib import Path

import torch
from errors import bad_input
from tiny import tiny_config, tiny_request
from torch import Tensor

from sfumato.engine.fake_cuda import FakeCuda, fake_cuda
from sfumato.request import Words
from sfumato.rewards import Part, WeightedSum
from sfumato.rewards.placement import placed
from sfumato.rewards.sharing import inference
from sfumato.training.train import train

WORDS = tiny_request([0, 1]).words


class Looking:
    """A reward that keeps what it gets, and gives a reason for missing scores."""

    def __init__(self):
        self.seen: list[Tensor] = []
        self.last_failure = "too dark"

    def __call__(self, images: Tensor, words: Words) -> Tensor:
        assert words.labels.device == images.device
        self.seen.append(images)
        return images.mean((1, 2, 3))


def test_rewards_share_one_copy_of_the_images():
    first, second = Looking(), Looking()
    images = torch.rand(2, 3, 4, 4)
    with fake_cuda() as device:
        rewards = placed(WeightedSum({"a": Part(reward=first, weight=2.0), "b": Part(reward=second)}), device)
        total, scores = rewards(images, WORDS)
        assert isinstance(first.seen[0], FakeCuda)
        assert first.seen[0] is second.seen[0]
        assert {score.device.type for score in (total, *scores.values())} == {"cpu"}
        rewards(images.clone(), WORDS)
        assert first.seen[1] is not first.seen[0]
    assert [part.weight for part in rewards.parts.values()] == [2.0, 1.0]
    assert getattr(rewards.parts["a"].reward, "last_failure", "") == "too dark"


def test_scores_do_not_change():
    images = torch.rand(2, 3, 4, 4)
    rewards = WeightedSum({"a": Part(reward=Looking(), scale=3.0)})
    assert torch.equal(placed(rewards, torch.device("cpu"))(images, WORDS)[0], rewards(images, WORDS)[0])


def test_a_device_that_is_not_there(tiny_model: Path, tmp_path: Path):
    with bad_input("reward_device", "'cuda:99'", "auto", "cpu"):
        train(tiny_config(tiny_model, reward_device="cuda:99"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_run_in_bfloat16_on_a_gpu_only():
    def product(device: torch.device) -> Tensor:
        weight = torch.ones(2, 2, device=device, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16), inference(device):  # whatever the caller uses
            product = weight @ weight
        assert not product.requires_grad
        return product

    assert product(torch.device("cpu")).dtype == torch.float32
    with fake_cuda() as device:
        assert product(device).dtype == torch.bfloat16
