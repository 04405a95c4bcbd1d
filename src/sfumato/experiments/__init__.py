"""The experiments of both papers by name, for `sfumato reproduce NAME`. Listing them loads nothing else."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sfumato.errors import UserError

if TYPE_CHECKING:
    from sfumato.experiments.experiment import Experiment

ScaleName = Literal["emoji", "full"]


@dataclass(frozen=True)
class Listed:
    """A reference to an experiment, which is imported only when it is built."""

    help: str
    """description in one line"""
    module: str
    """name of a module in this package"""
    function: str
    """name of the function in the module that builds the experiment"""
    needs_reference: bool = False
    """whether the experiment compares with real images"""

    def build(self, scale: ScaleName, reference: Path | None) -> "Experiment":
        """Build the experiment at a scale; `reference` is the path of real images.

        Raises:
            UserError: the experiment needs real images, and none are given.
        """
        if self.needs_reference and reference is None:
            raise UserError("reference: no real images are given; give an .npz file or a folder of them")
        module = importlib.import_module(f"{__name__}.{self.module}")
        arguments = (module.SCALES[scale], reference) if self.needs_reference else (module.SCALES[scale],)
        return getattr(module, self.function)(*arguments)


EXPERIMENTS: dict[str, Listed] = {
    "var-brightness": Listed("Figures 2 and 3: dark and bright pictures", "next_scale", "brightness"),
    "var-aesthetic": Listed("Figure 4 and Table 1: aesthetics, seen and unseen classes", "next_scale", "aesthetic"),
    "var-prompt": Listed("Figure 6: a prompt as the reward", "next_scale", "prompt"),
    "var-kl": Listed("Figure 7: the weight of the KL penalty", "next_scale", "kl"),
    "var-group-size": Listed("Figure 8: group size under a fixed budget", "next_scale", "group_size"),
    "infinity-brightness": Listed("Figures 2 and 3 on a text-to-image model of bits", "bitwise", "brightness"),
    "infinity-prompt": Listed("Figure 6 on a text-to-image model of bits", "bitwise", "prompt"),
    "infinity-kl": Listed("Figure 7 on a text-to-image model of bits", "bitwise", "kl"),
    "ar-grpo-quality": Listed(
        "Table 2: Inception Score, FID, sFID, precision, recall (needs --reference)",
        "next_token",
        "quality",
        needs_reference=True,
    ),
    "ar-grpo-entropy": Listed("Figures 3 and 4: entropy falls in training", "next_token", "entropy"),
    "ar-grpo-kl": Listed("Table 5: the weight of the KL penalty", "next_token", "kl"),
    "ar-grpo-rewards": Listed("Tables 6 to 8: choice of rewards", "next_token", "rewards"),
    "ar-grpo-hacking": Listed("Figure 5: reward curves and late reward hacking", "next_token", "hacking"),
    "ar-grpo-guidance": Listed("Figure 6: guidance in training and at inference", "next_token", "guidance"),
}
"""Experiments by name: `var-` for the first paper, `infinity-` for its claims about another family, `ar-grpo-` for the
second."""
