"""Files of weights for metrics of pyiqa, whose loading is imitated here: it unpickles whatever it is given."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import bad_input
from tiny import tiny_request
from torch import nn

from sfumato.rewards import build_reward
from sfumato.rewards.iqa import CROPS, load_metric, mean_of_crops, safe_unpickling

IMAGES = torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255).repeat(1, 1, 4, 4)
WEIGHTS = {"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([0.5])}


class Metric(nn.Module):
    """A metric that reads its file as pyiqa's `load_pretrained_network` does."""

    lower_better = False

    def __init__(self, path: str):
        super().__init__()
        object.__setattr__(self, "net", SimpleNamespace(test_sample=20))
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 3)), nn.Parameter(torch.zeros(1))
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["params"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(images.mean((2, 3)), self.weight, self.bias)


class Calls:
    """Unpickling it creates a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(autouse=True)
def pyiqa(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def create_metric(name: str, device: str, pretrained_model_path: str = f"{tmp_path}/default.pth") -> Metric:
        return Metric(pretrained_model_path)

    fake = SimpleNamespace(list_models=lambda kind: ["maniqa"], create_metric=create_metric)
    monkeypatch.setitem(sys.modules, "pyiqa", fake)
    load_metric.cache_clear()
    yield
    load_metric.cache_clear()


@pytest.mark.parametrize("content", [WEIGHTS, {"params": WEIGHTS}])
def test_files_of_authors_and_of_pyiqa(tmp_path: Path, content: dict[str, Any]):
    torch.save(content, tmp_path / "w.pt")
    scores = build_reward({f"maniqa?weights={tmp_path}/w.pt": 1.0})(IMAGES, tiny_request([0, 1]).words)[0]
    expected = IMAGES.mean((2, 3)) @ torch.tensor([1.0, 2.0, 3.0]) + 0.5
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_code_in_files_is_not_run(tmp_path: Path):
    torch.save({"params": WEIGHTS, "x": Calls(tmp_path / "ran")}, tmp_path / "w.pt")
    os.link(tmp_path / "w.pt", tmp_path / "default.pth")
    for name in (f"maniqa?weights={tmp_path}/w.pt", "maniqa"):
        with bad_input("reward", "more than tensors"):
            build_reward({name: 1.0})
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have run


def test_weights_that_do_not_fit(tmp_path: Path):
    torch.save({"other": torch.ones(1)}, tmp_path / "w.pt")
    with bad_input("reward", "weights: ", "w.pt", "maniqa", "other"):
        build_reward({f"maniqa?weights={tmp_path}/w.pt": 1.0})


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with safe_unpickling():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Patches(nn.Module):
    """A stand-in for pyiqa's MANIQA: it crops as pyiqa 0.1.16 does, and averages patches by their weights."""

    def __init__(self):
        super().__init__()
        self.test_sample, self.seen = 1, torch.zeros(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert min(images.shape[-2:]) > 224  # pyiqa would resize other images
        rows = int(self.test_sample**0.5)
        steps = [(side - 224) // rows for side in images.shape[-2:]]
        places = [(i * steps[0], j * steps[1]) for i in range(rows) for j in range(rows)]
        self.seen = torch.stack([images[..., y : y + 224, x : x + 224] for y, x in places], 1)
        patches = nn.functional.avg_pool2d(self.seen.flatten(0, 1), 56).unflatten(0, (len(images), -1))
        scores, weights = patches[:, :, 0].flatten(1), patches[:, :, 1].flatten(1)
        return ((weights * scores).sum(1) / weights.sum(1))[:, None]


def test_scores_of_crops_are_averaged():
    """As in MANIQA's `predict_one_image.py`: the score of each of twenty crops, then the mean."""
    images = torch.rand(2, 3, 236, 250, generator=torch.Generator().manual_seed(1))
    images[:, 1] *= torch.linspace(0.1, 1, 250)  # the weights differ between crops
    images[:, 0], images[:, 2] = torch.arange(236)[:, None] / 236, torch.arange(250) / 250  # where a pixel is
    network = Patches()
    found = mean_of_crops(network, images)
    crops = network.seen[:, 0].unflatten(0, (2, CROPS))
    for one, other in zip(*crops, strict=True):
        y, x = round(one[0, 0, 0].item() * 236), round(one[2, 0, 0].item() * 250)
        assert torch.equal(one, images[0, :, y : y + 224, x : x + 224])  # exactly a part of the image
        assert torch.equal(other, images[1, :, y : y + 224, x : x + 224])  # at the same place in each
        assert y < 236 - 224
        assert x < 250 - 224
    patches = nn.functional.avg_pool2d(crops.flatten(0, 1), 56)
    alone = (patches[:, 0] * patches[:, 1]).sum((1, 2)) / patches[:, 1].sum((1, 2))
    torch.testing.assert_close(found, alone.view(2, CROPS).mean(1), rtol=0, atol=1e-6)
    pooled = (patches[:, 0] * patches[:, 1]).view(2, -1).sum(1) / patches[:, 1].reshape(2, -1).sum(1)
    assert (found - pooled).abs().min() > 1e-6  # the mean over the patches of all crops is another number
    assert torch.equal(mean_of_crops(network, images), found)
    torch.testing.assert_close(mean_of_crops(network, images[1:]), found[1:], rtol=0, atol=1e-6)


def test_small_images_are_enlarged():
    network = Patches()
    mean_of_crops(network, torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert network.seen.shape == (CROPS, 1, 3, 224, 224)
    assert len(network.seen.flatten(1).unique(dim=0)) > 10  # crops along the longer side
