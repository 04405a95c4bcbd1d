"""`sfumato launch [OPTIONS OF TORCHRUN] train RECIPE`."""

import contextlib
import io
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.cli.listing import check_known
from sfumato.engine.cause import BAD_INPUT, BUG, FINISHED, INTERRUPTED
from sfumato.engine.engine_config import at_least
from sfumato.errors import UserError
from sfumato.recipes import TRAIN_RECIPES

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

HELP = """\
usage: sfumato launch [options of torchrun] train RECIPE ...

Train with several processes, one per GPU, on one or several machines. If a process fails, all end, and the last line
states the rank and the cause. The options before `train` are those of torchrun:

  --nproc-per-node N        number of processes on this machine
  --nnodes M                number of machines
  --node-rank K             number of this machine, from 0
  --master-addr HOST        address of machine 0
  --shutdown-timeout S      seconds to finish a step and save after Ctrl-C or SIGTERM (30)

`torchrun --help` lists the others, and `sfumato train RECIPE --help` those of the run.
"""


@dataclass(frozen=True)
class Launch:
    """Start processes with `torchrun`, and end with one line that states why a process failed."""

    options: Namespace
    """options of `torchrun`, including what to run"""

    def __call__(self) -> int:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import run

        try:
            run(self.options)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == INTERRUPTED:  # the run has said so
                return INTERRUPTED
            print("sfumato:", cause_in(rank, failure), file=sys.stderr)  # noqa: T201
            return BAD_INPUT if failure.exitcode == BAD_INPUT else BUG
        except SignalException as error:
            print(f"sfumato: stopped by {error.sigval.name}; continue with --resume", file=sys.stderr)  # noqa: T201
            return INTERRUPTED
        return FINISHED


def cause_in(rank: int, failure: "ProcessFailure") -> str:
    """Return in one line why a process failed: as it recorded itself, or by its exit status."""
    recorded = failure.error_file_data["message"]
    if isinstance(recorded, dict):
        return recorded["message"]
    if failure.exitcode < 0:
        return f"rank {rank}: killed by {failure.signal_name()}"
    return f"rank {rank}: ended with exit status {failure.exitcode}"


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `torchrun`, and those of the run, which every process parses again.

    Raises:
        UserError: an option is unknown or malformed, or the command to launch is not `train`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")  # noqa: T201
        return lambda: FINISHED
    from torch.distributed.run import determine_local_world_size, parse_args, parse_min_max_nnodes

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = parse_args(arguments)
    except SystemExit:
        problem = complaint.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"launch: {problem}; see sfumato launch --help") from None
    counts = {"nproc_per_node": determine_local_world_size, "nnodes": lambda text: min(parse_min_max_nnodes(text))}
    for name, count in counts.items():
        try:
            at_least(name, count(getattr(options, name)), 1)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{name}: {getattr(options, name)!r} is not a number of them ({error}); give 1 or more"
            ) from None
    command, rest = options.training_script, options.training_script_args
    if command != "train":
        raise UserError(f"launch: {command!r} runs in one process; launch train")
    if not rest:
        raise UserError("launch: train lacks a recipe; `sfumato train` lists them")
    if not rest[0].startswith("-"):
        check_known("recipe", rest[0], TRAIN_RECIPES)
    from sfumato.cli.train import parse as parse_train

    parse_train(rest)
    options.module, options.training_script, options.training_script_args = True, "sfumato", [command, *rest]
    return Launch(options)
