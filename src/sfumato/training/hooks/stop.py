"""Agreement on stopping: a signal reaches one process, and all processes must stop at the same step."""

from dataclasses import dataclass

from sfumato.engine.process import Process
from sfumato.interrupt import Interrupt
from sfumato.training.hooks.hook import Progress


@dataclass(frozen=True)
class Stop:
    """Hook that ends the run on all processes if Ctrl-C or an earlier hook asks any of them to stop."""

    process: Process
    interrupt: Interrupt

    def __call__(self, progress: Progress) -> None:
        if progress.batch is not None:
            progress.stop = self.process.any(progress.stop or bool(self.interrupt))
