"""`sfumato plan RECIPE` and `sfumato plan --config FILE`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli.options import parse_options
from sfumato.cli.train import start_of
from sfumato.errors import UserError
from sfumato.training.train_config import TrainConfig

FITS, TOO_LARGE = 0, 1
"""Exit statuses."""


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Tell whether a run fits the memory of its GPUs, without a GPU and before anything is loaded: memory, kernels and
    arithmetic of each phase. Every setting of the recipe is an option. Exit status: 0 it fits, 1 it does not."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    gpus: int = 1
    """number of GPUs, each with one process, which share the images of a step"""
    memory: float = 80.0
    """memory of each GPU in GiB"""
    reward_memory: float = 0.0
    """memory in GiB that reward models take on each GPU; they are not loaded"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON"""

    def __call__(self) -> int:
        from sfumato.training.plan import GIB, find_remedies, make_plan

        for name, least in (("gpus", 1), ("memory", 0), ("reward_memory", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        memory = self.memory * GIB
        plan = make_plan(self.config, self.gpus, self.reward_memory * GIB)
        fits = not plan.too_large(memory)
        remedies = [] if fits else find_remedies(self.config, plan, memory)
        if self.json:
            values = {
                "fits": fits,
                "memory_gib": self.memory,
                "static_gib": {name: size / GIB for name, size in plan.static.items()},
                "phases": {
                    name: {
                        "peak_gib": phase.peak / GIB,
                        "needed_gib": plan.needed(name) / GIB,
                        "kernels": phase.kernels,
                        "tflop": phase.flops / 1e12,
                    }
                    for name, phase in plan.phases.items()
                },
                "remedies": remedies,
            }
            print(json.dumps(values, indent=1))  # noqa: T201
        else:
            show(plan, self.memory, remedies)
        return FITS if fits else TOO_LARGE


def show(plan: Any, memory: float, remedies: list[dict[str, int]]) -> None:
    """Print a plan, for GPUs with `memory` GiB each, and what makes it fit."""
    from sfumato.training.plan import CONTEXT, FRAGMENTS, GIB, NCCL, advice

    console, table = Console(markup=False), Table(box=None, pad_edge=False)
    for heading in ("phase", "peak GiB", "needed GiB", "kernels", "TFLOP"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for name, phase in plan.phases.items():
        sizes = (f"{phase.peak / GIB:.2f}", f"{plan.needed(name) / GIB:.2f}")
        table.add_row(name, *sizes, str(phase.kernels), f"{phase.flops / 1e12:.2f}")
    console.print(table)
    static = ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.static.items())
    network = f", {NCCL / GIB:g} GiB for communication" if plan.processes > 1 else ""
    console.print(
        f"Lasting memory (GiB): {static}.\n"
        f"Needed: the peak, {FRAGMENTS:.0%} of it for fragmentation, {CONTEXT / GIB:g} GiB for CUDA and its "
        f"libraries{network}, and {plan.reward_memory / GIB:g} GiB for reward models.\n"
        "Reward models are not loaded; give their memory with --reward-memory.",
        highlight=False,
    )
    large = plan.too_large(memory * GIB)
    verdict = (
        f"Does not fit {memory:g} GiB: {', '.join(large)}; {advice(remedies)}." if large else f"Fits {memory:g} GiB."
    )
    console.print(verdict, highlight=False)


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse a recipe or a file of settings, and the options that change them."""
    start = start_of(arguments)
    return parse_options(PlanCommand, f"plan {start.name}", start.rest, PlanCommand(config=start.config))
