"""Print the table of docs/how-to/memory-and-time.md: what `sfumato plan` says of the recipes of released models.

    python scripts/make_plan_table.py [RECIPE ...] > table.md

It takes about half an hour of processor time for all recipes, and needs no GPU and no weights.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from sfumato.recipes import TRAIN_RECIPES
from sfumato.training import plan as planning
from sfumato.training.plan import GIB, Plan, find_remedies, make_plan
from sfumato.training.train_config import TrainConfig

MEMORY = (24, 40, 80, 139)
"""Memory of GPUs in GiB; an H200 has 139."""
RECIPES = [
    name
    for name in TRAIN_RECIPES
    if name.endswith("-bright") or (name.startswith("llamagen") and "ablation" not in name)
]
"""Rewards make no difference to a plan, so one recipe of each VAR is enough, and none of an ablation."""
SHORT = {
    "sample_batch_size": "draw",
    "micro_batch_size": "micro",
    "activation_checkpointing": "recompute",
    "lora_rank": "LoRA",
}
"""Short names of options, which the page explains."""
LORA_RANK = 16
"""Rank of the adapters to try where no batch is small enough."""


def remember(measure: Any) -> Any:
    """Return `measure` with a memory: several GPUs lead to the same trials."""
    known: dict[str, Any] = {}

    @functools.wraps(measure)
    def remembered(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in known:
            known[key] = measure(*arguments, **options)
        return known[key]

    return remembered


def row(name: str) -> str:
    """Return the table's row for a recipe."""
    config = TRAIN_RECIPES[name].build()
    plan = make_plan(config)
    needed = f"{max(map(plan.needed, plan.phases)) / GIB:.1f}"
    cells = [needed, f"{work(config, plan):,.0f}", *(way_to_fit(config, plan, memory * GIB) for memory in MEMORY)]
    return f"| `{name.removesuffix('-bright')}` | " + " | ".join(cells) + " |"


def work(config: TrainConfig, plan: Plan) -> float:
    """Return the TFLOP of a step: the plan has those of the images drawn at once, and of one minibatch."""
    drawn = sum(phase.flops for name, phase in plan.phases.items() if name != "update") / config.sample_batch_size
    return config.images_per_step * (drawn + plan.phases["update"].flops / config.minibatch_size) / 1e12


def way_to_fit(config: TrainConfig, plan: Plan, memory: float) -> str:
    """Return the options that make a run fit, the alternatives one below the other."""
    if not plan.too_large(memory):
        return "fits"
    if remedies := find_remedies(config, plan, memory):
        return "<br>or ".join(map(short, remedies))
    lora = {"lora_rank": LORA_RANK}
    adapted = planning.changed(config, lora)
    plan = make_plan(adapted)
    if not plan.too_large(memory):
        return short(lora)
    remedies = find_remedies(adapted, plan, memory)
    return short({**lora, **remedies[-1]}) if remedies else "no"


def short(changes: dict[str, int]) -> str:
    """Return changes by short names."""
    return ", ".join(f"{SHORT[name]} {value}" for name, value in changes.items())


def main(names: Sequence[str]) -> None:
    """Print the table."""
    planning.measure = remember(planning.measure)
    print("| recipe | needed GiB | TFLOP a step | " + " | ".join(f"{memory} GiB" for memory in MEMORY) + " |")  # noqa: T201
    print("|---|---|---|" + "---|" * len(MEMORY))  # noqa: T201
    for name in names or RECIPES:
        print(row(name), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
