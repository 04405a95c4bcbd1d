"""Pictures of the fixed set, and the entropy of the policy on it."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from sfumato.data.pictures import COLUMNS, grid, save_picture, side_by_side
from sfumato.engine.process import Process
from sfumato.files import read_lines, write_text
from sfumato.policy import Policy
from sfumato.rewards import WeightedSum
from sfumato.rollouts.together import Drawn, score_together
from sfumato.trackers import Trackers
from sfumato.training.fixed_set import FixedSet
from sfumato.training.hooks.curves import plot_curves
from sfumato.training.hooks.hook import Progress
from sfumato.training.training_view import TrainingView

REPEATS = 2
"""Number of images per condition."""


@dataclass(frozen=True)
class Pictures:
    """Hook that writes `samples/step-N.png`, `before_after.png`, `curves.png` and a line of `fixed_set.jsonl`."""

    run_dir: Path
    fixed_set: FixedSet
    reward: WeightedSum
    process: Process
    view: TrainingView
    trackers: Trackers
    every: int

    def __call__(self, progress: Progress) -> None:
        # If a run was stopped between its checkpoint and its picture, resuming draws the missing picture.
        done = progress.is_resumed and self.sample_path(progress.step).exists()
        if not progress.due(self.every) or self.process.any(done):
            return
        drawn = self.fixed_set.draw(REPEATS)
        total, _ = score_together(self.reward, self.process, drawn)
        if self.process.is_main:
            self.write(progress.step, drawn, total)

    def sample_path(self, step: int) -> Path:
        """Return the path of the picture after `step` steps."""
        return self.run_dir / f"samples/step-{step:06d}.png"

    def write(self, step: int, drawn: Drawn, total: Tensor) -> None:
        """Write all files of this step. Pictures that cannot be written do not stop the run."""
        log_fixed_set(self.run_dir / "fixed_set.jsonl", step, drawn, total, self.fixed_set.engine.policy)
        with self.view.only_for_looking(f"step {step}: pictures"):
            images = drawn.images
            save_picture(grid(images, COLUMNS, zoom=max(1, 96 // images.shape[-1])), self.sample_path(step))
            if self.sample_path(0).exists():  # the user may remove it
                with Image.open(self.sample_path(0)) as before, Image.open(self.sample_path(step)) as after:
                    titled = [("before", before.copy()), (f"after {step} steps", after.copy())]
                save_picture(side_by_side(titled), self.run_dir / "before_after.png")
            plot_curves(self.run_dir)
        self.trackers.picture("samples", self.sample_path(step), step)
        if step:
            self.trackers.picture("before_after", self.run_dir / "before_after.png", step)


def log_fixed_set(path: Path, step: int, drawn: Drawn, total: Tensor, policy: Policy) -> None:
    """Log a line with the mean entropy, the entropy per unit, the mean reward, and each picture's name, reward and, if
    the model writes one, text."""
    entropy = drawn.rollout.entropy
    line = {
        "step": step,
        "entropy": entropy.mean().item(),
        "reward_mean": total.nanmean().item(),
        "entropy_by_unit": [round(unit.mean().item(), 4) for unit in entropy.mean(0).split(policy.generator.units)],
        "names": drawn.words.names,
        "rewards": [round(score, 4) for score in total.tolist()],
    }
    if texts := policy.texts(drawn.rollout.tokens):
        line["texts"] = texts
    kept = [row for row in read_lines(path) if row["step"] < step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in [*kept, line]))
