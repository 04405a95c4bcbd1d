"""The training loop."""

from collections.abc import Callable, Sequence

import torch

from sfumato.engine.engine import Engine
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import UserError
from sfumato.objectives import Objective
from sfumato.rollouts.inline import InlineRollouts
from sfumato.training.hooks.hook import Hook, Progress


def learn(
    first: int,
    steps: int,
    rollouts: InlineRollouts,
    objective: Objective,
    engine: Engine,
    hooks: Sequence[Hook],
    rng: torch.Generator,
    *,
    minibatch_size: int,
    learning_rate: Callable[[int], float],
) -> bool:
    """Run the steps from `first` to `steps`: draw, assign credit, update, and call the hooks. Every process runs this.

    Args:
        first: number of steps already done.
        steps: total number of steps.
        rollouts: draws and scores the batches.
        objective: computes the credit and the loss.
        engine: owns the parameters.
        hooks: called in order at the start and after every step.
        rng: makes all random choices; its state is in every checkpoint.
        minibatch_size: number of images per optimizer update.
        learning_rate: learning rate of each step, counted from 0.

    Returns:
        Whether all steps are done; if not, a hook stopped the run.

    Raises:
        UserError: a reward fails, or the gradient is not finite; the message names the step.
    """
    progress = Progress(step=first, steps=steps)
    for hook in hooks:
        hook(progress)
    for step in range(first, steps):
        try:
            timer = PhaseTimer(engine.policy.device)
            batch = rollouts.next(rng, timer)
            credit = objective.credit(batch)
            with timer("update"):
                minibatches = batch.minibatches(minibatch_size, rng)
                stats = engine.update(objective.loss, batch, credit, minibatches, learning_rate(step))
        except UserError as error:
            raise UserError(f"step {step + 1}: {error}") from error
        rates = {"learning_rate": learning_rate(step), "images_per_second": len(batch) / timer.total()}
        seconds = {f"seconds/{phase}": duration for phase, duration in timer.seconds.items()}
        metrics = {**batch.metrics, **credit.metrics, **stats, **rates, **seconds}
        progress = Progress(step=step + 1, steps=steps, batch=batch, metrics=metrics)
        for hook in hooks:
            hook(progress)
        if progress.stop and not progress.is_last:
            return False
    return True
