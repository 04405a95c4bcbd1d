"""Short runs of version 0.1 on the bundled generators, reproduced number by number.

A token is drawn where a cumulative probability passes a uniform number, and other processors round a draw or two to the
other side. So the drawn tokens are recorded too: each draw must be the recorded one but for rounding, and the recorded
one is taken. Only the first step is compared, as its draws alone are recorded.

The rewards of `emoji-llamagen` and `emoji-t2i`, and what follows from them, were recorded again when these models got
sharper decoders; until then they were those of version 0.1.
"""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int64
from rich.console import Console
from run_folders import metrics_of
from torch import Tensor

from sfumato.cli.main import parse
from sfumato.cli.train import Train
from sfumato.policy import inverse_cdf
from sfumato.training.train import train

RUNS = json.loads((Path(__file__).parent / "golden/runs.json").read_text())


ROUNDING = 1e-5
"""How far a cumulative probability may be on another processor; 4e-7 was seen between AMD and Intel."""


class Draws:
    """Takes the place of `inverse_cdf`: returns the recorded tokens, unit by unit."""

    def __init__(self, tokens: list[str]):
        self.rest = torch.tensor([[int(token) for token in image.split()] for image in tokens], dtype=torch.int64)

    def __call__(self, probabilities: Float[Tensor, "B u V"], uniforms: Float[Tensor, "B u"]) -> Int64[Tensor, "B u"]:
        if len(uniforms) != len(self.rest):
            return inverse_cdf(probabilities, uniforms)  # images that are drawn only to be shown
        count = uniforms.shape[1]
        drawn, self.rest = self.rest[:, :count], self.rest[:, count:]
        high = probabilities.cumsum(-1).gather(-1, drawn[..., None])[..., 0]
        low = high - probabilities.gather(-1, drawn[..., None])[..., 0]
        assert (low - ROUNDING < uniforms).all()
        assert (uniforms < high + ROUNDING).all()
        return drawn


@pytest.mark.parametrize("name", RUNS)
def test_first_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draws = Draws(RUNS[name]["tokens"])
    monkeypatch.setattr("sfumato.policy.inverse_cdf", draws)
    command = parse(shlex.split(RUNS[name]["command"])[1:])
    assert isinstance(command, Train)
    assert train(replace(command.config, steps=1, device="cpu"), tmp_path / "run", console=Console(quiet=True))
    expected, actual = RUNS[name]["metrics"][0], metrics_of(tmp_path / "run")[0]
    for metric, value in expected.items():
        near = pytest.approx(value, abs=2e-3) if metric == "clip_fraction" else pytest.approx(value, rel=1e-4)
        assert actual[metric] == near, metric
    assert draws.rest.shape[1] == 0
