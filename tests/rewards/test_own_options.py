"""Options of a user's own class of rewards: how their types are found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from tiny import tiny_request

from sfumato.rewards import build_reward

IMAGES, WORDS = torch.zeros(1, 3, 4, 4), tiny_request([0]).words
OWN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

class Told:
    def __init__(self, table: ndarray | None = None, start=1, wanted: float = 0.5, many: list[int] = ()):
        self.values = (table, start, wanted, many)
    def __call__(self, images: Tensor, words):
        raise RuntimeError(repr(self.values))

@dataclass
class Listed:
    wanted: float
    table: ndarray | None = None
    def __call__(self, images: Tensor, words):
        raise RuntimeError(repr((self.table, self.wanted)))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Told?wanted=3&start=2&many=1, 2", (None, 2, 3.0, [1, 2])),
        ("Told?table=a.npy", ("a.npy", 1, 0.5, ())),
        ("Listed?wanted=3", (None, 3.0)),
        ("Listed?wanted=3&table=a.npy", ("a.npy", 3.0)),
    ],
)
def test_hints_that_only_type_checkers_know(tmp_path: Path, name: str, expected: tuple[Any, ...]):
    """The other hints still count, and such an option goes by its default, or stays text."""
    (tmp_path / "own.py").write_text(OWN)
    with bad_input("reward", f"RuntimeError: {expected!r}"):
        build_reward({f"{tmp_path}/own.py:{name}": 1.0})(IMAGES, WORDS)


def test_other_hints_are_still_checked(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    with bad_input("reward", "wanted: 'much' is not a value of type float"):
        build_reward({f"{tmp_path}/own.py:Told?wanted=much": 1.0})


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("def f(images, words):\n    return images.mean((1, 2, 3))\n")
    assert build_reward({"~/own.py:f": 1.0})(IMAGES, WORDS)[0].tolist() == [0]
