"""Rewards, and class accuracy if the model has a judge, on fresh images before and after training."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from sfumato.data.classes import WordsSampler
from sfumato.emoji.judges import Classifier
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.files import write_text
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import short_names
from sfumato.rollouts.together import draw_together, score_together
from sfumato.training.hooks.hook import Progress


@dataclass(frozen=True)
class BeforeAfter:
    """Hook that writes `evaluation.json`. It draws images from a random stream of its own."""

    run_dir: Path
    engine: Engine
    process: Process
    sampler: WordsSampler
    reward: WeightedSum
    judge: Classifier | None
    images: int
    batch_size: int
    seed: int
    console: Console

    def __call__(self, progress: Progress) -> None:
        if progress.is_start or progress.is_last:
            self.measure("before" if progress.is_start else "after")

    def measure(self, moment: str) -> None:
        """Draw and score images and write the results. All processes must call this together."""
        if self.process.is_main:
            self.console.print(f"Measuring {self.images} images {moment} training", highlight=False, soft_wrap=True)
        rng = torch.Generator().manual_seed(self.seed + 2**40)
        words = self.sampler.next(self.images, rng)
        seeds = torch.randint(2**62, (len(words),), generator=rng)
        drawn = draw_together(self.engine, self.process, words, seeds, self.batch_size)
        total, parts = score_together(self.reward, self.process, drawn)
        if not self.process.is_main:
            return
        result = {"images": len(words), "reward_mean": total.nanmean().item()}
        short = short_names(parts)
        result |= {f"reward/{short[name]}": scores.nanmean().item() for name, scores in parts.items()}
        accuracy = None if self.judge is None else class_accuracy(self.judge, drawn.images, words)
        if accuracy is not None:
            result |= {"class_accuracy_top1": accuracy.top1, "class_accuracy_top5": accuracy.top5}
        path = self.run_dir / "evaluation.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        write_text(path, json.dumps({**results, moment: result}, indent=1) + "\n")
        text = "  ".join(f"{name} {value:#.4g}" for name, value in result.items() if name != "images")
        self.console.print(f"{moment:>6}: {text}  (on {len(words)} fresh images)", highlight=False, soft_wrap=True)
