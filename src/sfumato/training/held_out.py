"""Watching for reward hacking: rewards that are measured on fixed conditions and never optimised."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.emoji.judges import Classifier
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.files import write_text
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import statistics
from sfumato.rollout import Rollout
from sfumato.training.logger import read_lines

REPEATS = 4
"""images of each condition"""
RISE, FALL = 0.5, 0.25
"""standard deviations over the images, at the start: what a reward must rise or fall by to count"""
SHARE = 0.1
"""of its first value: what accuracy, diversity or entropy must fall by to count"""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rewards, class accuracy, diversity and entropy of the fixed set, as lines of `held_out.jsonl`."""

    optimised: WeightedSum
    """the reward of the run"""
    rewards: WeightedSum
    """those that are never optimised"""
    classifier: Classifier
    """whose features give the distances of diversity; accuracy is known where it knows the classes"""
    path: Path
    """of `held_out.jsonl`"""

    def measure(self, step: int, rollout: Rollout, images: Float[Tensor, "B 3 H W"]) -> dict[str, float]:
        """What is known of these images after `step` steps; kept in the file."""
        total, _ = self.optimised(images, rollout.conditions)
        held, scores = self.rewards(images, rollout.conditions)
        figures = {"optimised": total.nanmean().item(), "optimised_std": statistics(total, {})["reward_std"]}
        found = statistics(held, scores)
        for name in scores:
            figures[f"reward/{name}"] = found[f"reward/{name}"]
            figures[f"reward_std/{name}"] = found[f"reward_std/{name}"]
        accuracy = class_accuracy(self.classifier, images, rollout.conditions)
        if accuracy is not None:
            figures["class_accuracy"] = accuracy.top1
        with torch.no_grad():
            features = self.classifier.features(images.cpu() * 2 - 1).amax((2, 3))
        figures["diversity"] = diversity(features, REPEATS)
        figures["entropy"] = rollout.entropy.mean().item()
        rows = [row for row in read_lines(self.path) if row["step"] < step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in [*rows, {"step": step, **figures}]))
        return {f"held_out/{name}": value for name, value in figures.items() if "_std" not in name}

    def signs(self) -> list[str]:
        """What fell since the start while the optimised reward rose; nothing if it did not rise."""
        rows = read_lines(self.path)
        return hacking_signs(rows[0], rows[-1]) if len(rows) > 1 else []


def hacking_signs(first: dict[str, float], now: dict[str, float]) -> list[str]:
    """Figures that fell between two measurements although the optimised reward rose: the signs of reward hacking.

    The reward must have risen by half a standard deviation over the images, a held-out one fallen by a quarter of
    its own; accuracy, diversity and entropy must have lost a tenth.
    """
    if now["optimised"] - first["optimised"] <= RISE * first["optimised_std"]:
        return []
    signs = []
    for name in first:
        if name.startswith("reward/"):
            needed = FALL * first[f"reward_std/{name.removeprefix('reward/')}"]
        elif name in ("class_accuracy", "diversity", "entropy"):
            needed = SHARE * abs(first[name])
        else:
            continue
        if first[name] - now[name] > needed:
            signs.append(f"{name.removeprefix('reward/')} fell from {first[name]:.3f} to {now[name]:.3f}")
    return signs


def diversity(features: Float[Tensor, "B D"], repeats: int) -> float:
    """Mean Euclidean distance between the features of two images of the same condition, `repeats` of which are
    next to each other."""
    groups = features.float().unflatten(0, (-1, repeats))
    distances = torch.cdist(groups, groups).sum((1, 2)) / (repeats * (repeats - 1))
    return distances.mean().item()
