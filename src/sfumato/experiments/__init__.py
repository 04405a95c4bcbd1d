"""The experiments of both papers, by name: `sfumato reproduce NAME`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from sfumato.experiments import next_scale, next_token
from sfumato.experiments.experiment import Experiment

ScaleName = Literal["emoji", "full"]
Build = Callable[[ScaleName, Path | None], Experiment]
"""An experiment at a scale; the path is that of real images, which only Table 2 needs"""


def _next_scale(build: Callable[[next_scale.Scale], Experiment]) -> Build:
    return lambda scale, reference: build(next_scale.SCALES[scale])


def _next_token(build: Callable[[next_token.Scale], Experiment]) -> Build:
    return lambda scale, reference: build(next_token.SCALES[scale])


EXPERIMENTS: Mapping[str, tuple[str, Build]] = {
    "var-brightness": ("Figures 2 and 3: dark and bright pictures", _next_scale(next_scale.brightness)),
    "var-aesthetic": ("Figure 4, Table 1: looks, seen and unseen classes", _next_scale(next_scale.aesthetic)),
    "var-prompt": ("Figure 6: a prompt as the reward", _next_scale(next_scale.prompt)),
    "var-kl": ("Figure 7: the weight of the KL penalty", _next_scale(next_scale.kl)),
    "var-group-size": ("Figure 8: group size under a fixed budget", _next_scale(next_scale.group_size)),
    "ar-grpo-quality": (
        "Table 2: Inception Score, FID, sFID, precision, recall (needs --reference)",
        lambda scale, reference: next_token.quality(next_token.SCALES[scale], reference),
    ),
    "ar-grpo-entropy": ("Figures 3 and 4: the entropy falls", _next_token(next_token.entropy)),
    "ar-grpo-kl": ("Table 5: the weight of the KL penalty", _next_token(next_token.kl)),
    "ar-grpo-rewards": ("Tables 6 to 8: which rewards", _next_token(next_token.rewards)),
    "ar-grpo-hacking": ("Figure 5: reward curves and late hacking", _next_token(next_token.hacking)),
    "ar-grpo-guidance": ("Figure 6: guidance in training and at inference", _next_token(next_token.guidance)),
}
"""Experiments by name, each with one line of help: `var-` of the first paper, `ar-grpo-` of the second."""
