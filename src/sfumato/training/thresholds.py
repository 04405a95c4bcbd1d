"""Thresholds of quantized rewards, measured once on samples of the base model."""

import json
from pathlib import Path

import torch

from sfumato.data.classes import WordsSampler
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.files import write_text
from sfumato.rewards import WeightedSum
from sfumato.rollouts.together import draw_together

IMAGES = 256
"""Number of images to draw and score."""


def fix_thresholds(
    reward: WeightedSum,
    run_dir: Path,
    engine: Engine,
    process: Process,
    sampler: WordsSampler,
    *,
    batch_size: int,
    seed: int,
) -> WeightedSum:
    """Return the reward with all thresholds set. All processes must call this together.

    The thresholds are read from `thresholds.json` if it exists. Otherwise images are drawn, and the thresholds are
    quantiles of their scores, which are then written to `thresholds.json`.
    """
    path, missing = run_dir / "thresholds.json", reward.without_thresholds()
    if not missing:
        return reward
    if path.exists():
        known = json.loads(path.read_text())
        return reward.with_thresholds({name: known[name] for name in missing})
    words = sampler.next(IMAGES, torch.Generator().manual_seed(seed))
    drawn = draw_together(engine, process, words, torch.arange(len(words)), batch_size)
    measured = reward.measure_thresholds(drawn.images, words)
    if process.is_main:
        write_text(path, json.dumps(measured, indent=1) + "\n")
    return reward.with_thresholds(measured)
