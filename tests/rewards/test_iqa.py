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
from sfumato.rewards.iqa import load_metric, safe_unpickling

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = {"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([0.5])}


class Metric(nn.Module):
    """A metric that reads its file as pyiqa's `load_pretrained_network` does."""

    lower_better = False

    def __init__(self, path: str):
        super().__init__()
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
