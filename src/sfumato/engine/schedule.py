"""Learning-rate schedules: functions that return the factor of the peak rate for each step."""

import math
from collections.abc import Callable


def cosine_schedule(steps: int, warmup_steps: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Return a schedule with linear warm-up to 1, then a half cosine that falls to `floor` at the last step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
