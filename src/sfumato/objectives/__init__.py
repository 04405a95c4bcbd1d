"""Training objectives: one file per objective, plus files of pure functions that they share."""

import inspect
from pathlib import Path
from typing import Any

from sfumato.errors import UserError, alternatives
from sfumato.objectives.best_of_n import BestOfN
from sfumato.objectives.cca import CCA
from sfumato.objectives.cispo import CISPO
from sfumato.objectives.dapo import DAPO
from sfumato.objectives.dpo import DPO
from sfumato.objectives.dr_grpo import DrGRPO
from sfumato.objectives.eg_grpo import EntropyGuidedGRPO
from sfumato.objectives.entropy_grpo import EntropyGRPO
from sfumato.objectives.gcpo import GCPO
from sfumato.objectives.gdpo import GDPO
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.gspo import GSPO
from sfumato.objectives.objective import Credit, Objective
from sfumato.objectives.prefix import PrefixGRPO
from sfumato.objectives.random_prefix import RandomPrefixGRPO
from sfumato.objectives.reasoning_grpo import ReasoningGRPO
from sfumato.objectives.rloo import RLOO
from sfumato.objectives.scale_weights import ScaleWeightedGRPO
from sfumato.objectives.stage import STAGE
from sfumato.objectives.tree import TreeGRPO
from sfumato.objectives.va_pi import VAPi
from sfumato.plugins import is_path, load_object

OBJECTIVES: dict[str, type] = {
    "grpo": GRPO,
    "dr-grpo": DrGRPO,
    "gdpo": GDPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "rloo": RLOO,
    "scale-grpo": ScaleWeightedGRPO,
    "entropy-grpo": EntropyGRPO,
    "eg-grpo": EntropyGuidedGRPO,
    "gcpo": GCPO,
    "stage": STAGE,
    "prefix-grpo": PrefixGRPO,
    "random-prefix-grpo": RandomPrefixGRPO,
    "tree-grpo": TreeGRPO,
    "reasoning-grpo": ReasoningGRPO,
    "best-of-n": BestOfN,
    "dpo": DPO,
    "cca": CCA,
    "va-pi": VAPi,
}
"""Objectives by name. The docstring of each class describes it; its fields are its options."""


def find_objective(name: str) -> type:
    """Return the class of an objective by name, or a user's own as `path/to/file.py:Class`.

    Raises:
        UserError: there is no such class, or it is not an objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if not is_path(name):
        hint = alternatives(name, OBJECTIVES)
        raise UserError(f"objective: unknown objective {name!r}; {hint} (your own is path/to/file.py:Class)")
    kind = load_object("objective", name)
    missing = [member for member in ("needs_reference", "credit", "loss") if not hasattr(kind, member)]
    if not isinstance(kind, type) or missing:
        raise UserError(f"objective: {name} has no {', '.join(missing)}; see sfumato.objectives.Objective")
    return kind


def name_of(objective: Any) -> str:
    """Return the name by which `find_objective` returns an objective's class."""
    kind = type(objective)
    known = {kind: name for name, kind in OBJECTIVES.items()}
    return known.get(kind) or f"{Path(inspect.getfile(kind)).resolve()}:{kind.__qualname__}"


__all__ = ["GDPO", "GRPO", "OBJECTIVES", "Credit", "Objective", "find_objective", "name_of"]
