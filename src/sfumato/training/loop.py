"""The training loop."""

from collections.abc import Callable, Sequence

import torch

from sfumato.engine.engine import Engine
from sfumato.engine.memory import peak_memory
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import SharedError, UserError
from sfumato.objectives import Objective
from sfumato.rollouts.dataset import DataRollouts
from sfumato.rollouts.inline import InlineRollouts
from sfumato.training.hooks.hook import Hook, Progress


class BatchError(SharedError):
    """Images could not be drawn or scored. Weights and random generator are as they were after the last step."""

    def __init__(self, message: str, done: int):
        super().__init__(message)
        self.done = done
        """number of steps done"""


def learn(
    first: int,
    steps: int,
    rollouts: InlineRollouts | DataRollouts,
    objective: Objective,
    engine: Engine,
    hooks: Sequence[Hook],
    rng: torch.Generator,
    *,
    minibatch_size: int,
    learning_rate: Callable[[int], float],
) -> bool:
    """Run the steps from `first` to `steps`: draw, assign credit, update, and call the hooks. Every process runs this.

    A hook may end the run earlier, see `Progress`.

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
        BatchError: a reward fails. All processes raise it, and the run can go on from there.
        UserError: the gradient is not finite. Both messages name the step.
    """
    progress = Progress(step=first, steps=steps)
    for hook in hooks:
        hook(progress)
    while progress.step < progress.steps:
        step = progress.step
        timer, before = PhaseTimer(engine.policy.device), rng.get_state()
        state = rollouts.reward.state_dict()
        try:
            batch = rollouts.next(rng, timer)
            credit = objective.credit(batch)
        except UserError as error:
            rng.set_state(before)
            rollouts.reward.load_state_dict(state)
            raise BatchError(f"step {step + 1}: {error}", done=step) from error
        rollouts.process.meet()  # the update exchanges gradients
        try:
            with timer("update"):
                minibatches = batch.minibatches(minibatch_size, rng)
                stats = engine.update(objective.loss, batch, credit, minibatches, learning_rate(step))
        except UserError as error:
            raise UserError(f"step {step + 1}: {error}") from error
        rates = {"learning_rate": learning_rate(step), "images_per_second": len(batch) / timer.total()}
        seconds = {f"seconds/{phase}": duration for phase, duration in timer.seconds.items()}
        memory = {"peak_memory": peak_memory(engine.policy.device)}
        metrics = {**batch.metrics, **credit.metrics, **stats, **rates, **seconds, **memory}
        progress = Progress(step=step + 1, steps=steps, batch=batch, metrics=metrics, processor=timer.processor)
        try:
            for hook in hooks:
                hook(progress)
        except UserError as error:
            raise BatchError(f"step {step + 1}: {error}", done=step + 1) from error
        if progress.stop and not progress.is_last:
            return False
    return True
