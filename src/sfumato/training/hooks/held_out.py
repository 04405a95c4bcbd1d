"""Detection of reward hacking: rewards that are measured on the fixed set but never optimized."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.emoji.judges import Classifier
from sfumato.engine.process import Process
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.files import read_lines, write_text
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import short_names, statistics
from sfumato.rollouts.together import score_together
from sfumato.training.fixed_set import FixedSet
from sfumato.training.hooks.curves import plot_held_out
from sfumato.training.hooks.hook import Progress
from sfumato.training.training_view import TrainingView

REPEATS = 4
"""Number of images per condition."""
RISE, FALL = 0.5, 0.25
"""How far the optimized reward must rise and a held-out reward must fall to count, in standard deviations over the
images at the start."""
SHARE = 0.1
"""How far accuracy, diversity or entropy must fall to count, as a share of its first value."""


@dataclass(frozen=True)
class HeldOut:
    """Hook that measures held-out rewards and entropy on the fixed set, and class accuracy and diversity if the model
    has a judge.

    It writes lines of `held_out.jsonl`, warns of reward hacking, and stops the run if the config asks for it.
    """

    run_dir: Path
    fixed_set: FixedSet
    optimized: WeightedSum
    """reward of the run"""
    rewards: WeightedSum
    """held-out rewards, which are never optimized"""
    judge: Classifier | None
    """classifier that knows the classes; diversity is the distance between its features"""
    process: Process
    view: TrainingView
    every: int
    stop_when_hacking: bool

    def __call__(self, progress: Progress) -> None:
        if progress.is_resumed or not progress.due(self.every):
            return
        figures = self.measure()
        progress.metrics |= {f"held_out/{name}": value for name, value in figures.items() if "_std" not in name}
        # Only the main process writes the file of rows; all processes read it and decide from the same figures.
        rows = [*self.rows_before(progress.step), {"step": progress.step, **figures}]
        signs = hacking_signs(rows[0], rows[-1]) if len(rows) > 1 else []
        progress.stop |= bool(signs) and self.stop_when_hacking
        if self.process.is_main:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            with self.view.only_for_looking(f"step {progress.step}: held_out.png"):
                plot_held_out(self.run_dir)
            if signs:
                self.view.note(
                    f"Step {progress.step}: signs of reward hacking: the reward rose, but {'; '.join(signs)}."
                )

    def rows_before(self, step: int) -> list[dict[str, float]]:
        """Return the earlier measurements. Version 0.1 spelled a name differently."""
        rows = [row for row in read_lines(self.path) if row["step"] < step]
        return [{name.replace("optimised", "optimized"): value for name, value in row.items()} for row in rows]

    @property
    def path(self) -> Path:
        """Path of the file with the measurements."""
        return self.run_dir / "held_out.jsonl"

    def measure(self) -> dict[str, float]:
        """Measure the fixed set as it is now. All processes must call this together."""
        drawn = self.fixed_set.draw(REPEATS)
        total, _ = score_together(self.optimized, self.process, drawn)
        held, scores = score_together(self.rewards, self.process, drawn)
        figures = {"optimized": total.nanmean().item(), "optimized_std": statistics(total, {})["reward_std"]}
        known = statistics(held, scores)
        for name in short_names(scores).values():
            figures[f"reward/{name}"] = known[f"reward/{name}"]
            figures[f"reward_std/{name}"] = known[f"reward_std/{name}"]
        if self.judge is not None:
            accuracy = class_accuracy(self.judge, drawn.images, drawn.words)
            if accuracy is not None:
                figures["class_accuracy"] = accuracy.top1
            with torch.no_grad():
                features = self.judge.features(drawn.images.cpu() * 2 - 1).amax((2, 3))
            figures["diversity"] = diversity(features, REPEATS)
        figures["entropy"] = drawn.rollout.entropy.mean().item()
        return figures


def hacking_signs(first: dict[str, float], now: dict[str, float]) -> list[str]:
    """Return signs of reward hacking: figures that fell between two measurements although the optimized reward rose.

    The optimized reward must have risen by more than half a standard deviation over the images. A held-out reward must
    have fallen by more than a quarter of its own standard deviation; accuracy, diversity and entropy by more than a
    tenth.
    """
    if now["optimized"] - first["optimized"] <= RISE * first["optimized_std"]:
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
    """Return the mean Euclidean distance between the features of two images of the same condition. The `repeats` images
    of a condition are adjacent."""
    groups = features.float().unflatten(0, (-1, repeats))
    distances = torch.cdist(groups, groups).sum((1, 2)) / (repeats * (repeats - 1))
    return distances.mean().item()
