"""Conditions and seeds that stay the same throughout training, to make pictures and measurements comparable."""

from dataclasses import dataclass

import torch

from sfumato.data.classes import WordsSampler
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.rollouts.together import Drawn, draw_together


@dataclass(frozen=True)
class FixedSet:
    """Fixed conditions (16 by default), spread over all conditions of the run."""

    engine: Engine
    process: Process
    sampler: WordsSampler
    batch_size: int
    count: int = 16

    def draw(self, repeats: int) -> Drawn:
        """Draw `repeats` images per condition, always with the same seeds. All processes must call this together."""
        words = self.sampler.spread(self.count).repeat(repeats)
        return draw_together(self.engine, self.process, words, torch.arange(len(words)), self.batch_size)
