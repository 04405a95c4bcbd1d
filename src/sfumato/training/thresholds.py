"""Thresholds of quantised rewards, measured once on the base model's samples."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sfumato.files import write_text
from sfumato.rewards import WeightedSum
from sfumato.rollout import Conditions

IMAGES = 256
"""that are drawn and scored"""


def fix_thresholds(
    reward: WeightedSum, path: Path, draw: Callable[[], tuple[Tensor, Conditions]], writes: bool
) -> WeightedSum:
    """The reward with all thresholds: those in the file `path` if there is one, else quantiles of the scores of the
    images that `draw` gives, which are written there if `writes`."""
    missing = reward.without_thresholds()
    if not missing:
        return reward
    if path.exists():
        known = json.loads(path.read_text())
        return reward.with_thresholds({name: known[name] for name in missing})
    measured = reward.measure_thresholds(*draw())
    if writes:
        write_text(path, json.dumps(measured, indent=1) + "\n")
    return reward.with_thresholds(measured)
