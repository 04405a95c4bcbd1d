"""The evaluation suites by name."""

from sfumato.evaluation.suites.accuracy import AccuracySuite
from sfumato.evaluation.suites.alignment import Alignment
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.suites.dpg import DPG
from sfumato.evaluation.suites.drawbench import DrawBench
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.evaluation.suites.geneval import GenEval
from sfumato.evaluation.suites.guidance_sweep import GuidanceSweep, Swept
from sfumato.evaluation.suites.imagenet import ImageNet
from sfumato.evaluation.suites.t2i_compbench import T2ICompBench

AnySuite = Swept | GuidanceSweep

SUITES: dict[str, type[AnySuite]] = {
    "accuracy": AccuracySuite,
    "alignment": Alignment,
    "imagenet": ImageNet,
    "entropy": Entropy,
    "diversity": Diversity,
    "drawbench": DrawBench,
    "geneval": GenEval,
    "dpg": DPG,
    "t2i-compbench": T2ICompBench,
    "guidance-sweep": GuidanceSweep,
}
"""Suites by name. The docstring of each class describes the measurement, and its fields are the options."""
