"""The command that repeats the papers' experiments."""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from sfumato.experiments import EXPERIMENTS, ScaleName


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Repeat an experiment of a paper: its runs, its measurements, its plot, and whether its claims hold here."""

    experiment: tyro.conf.Positional[str]
    """name; `sfumato reproduce` lists them"""
    scale: ScaleName = "emoji"
    """emoji: the bundled models, on two cores; full: released weights and the paper's settings, on GPUs"""
    reference: Path | None = None
    """real images for Table 2: the unpacked npm package emoji-datasource-google, a folder of images, or an .npz file"""
    out: Path = Path("results")
    """folder for plot.png, pictures.png, numbers.csv and summary.md, in a folder of the experiment's name"""
    work: Path = Path("runs/reproduce")
    """folder for runs and evaluations, which experiments share; what is there is not made again"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import join
        from sfumato.experiments.reproduction import reference_images, reproduce

        _, build = EXPERIMENTS[self.experiment]
        reference = None if self.reference is None else reference_images(self.reference, self.work / "reference")
        experiment, console = build(self.scale, reference), Console()
        device: torch.device = join(self.device).device
        name, command = self.experiment, f"sfumato reproduce {self.experiment}"
        if self.scale != "emoji":
            name, command = f"{name}-{self.scale}", f"{command} --scale {self.scale}"
        if not reproduce(name, experiment, self.out, self.work, str(device), console, command):
            return 130
        console.print(f"Look at {self.out / name}/summary.md", highlight=False, soft_wrap=True)
        return 0
