"""`sfumato reproduce EXPERIMENT`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.experiments import EXPERIMENTS, ScaleName
from sfumato.notes import note


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce an experiment from a paper: its runs, measurements and plot, and whether its claims hold here."""

    experiment: tyro.conf.Positional[str]
    """name of the experiment; `sfumato reproduce` lists them"""
    scale: ScaleName = "emoji"
    """emoji: bundled models, on two CPU cores; full: released weights and the paper's settings, on GPUs"""
    reference: Path | None = None
    """real images for Table 2: the unpacked npm package emoji-datasource-google, a folder of images, or an .npz file"""
    out: Path = Path("results")
    """folder for the results; a subfolder per experiment has plot.png, pictures.png, numbers.csv and summary.md"""
    work: Path = Path("runs/reproduce")
    """folder for runs and evaluations, shared by all experiments; existing ones are reused"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device
        from sfumato.experiments.reproduction import reference_images, reproduce

        reference = None if self.reference is None else reference_images(self.reference, self.work / "reference")
        experiment, console = EXPERIMENTS[self.experiment].build(self.scale, reference), Console(markup=False)
        device = find_device(self.device)
        name, command = self.experiment, f"sfumato reproduce {self.experiment}"
        if self.scale != "emoji":
            name, command = f"{name}-{self.scale}", f"{command} --scale {self.scale}"
        if not reproduce(name, experiment, self.out, self.work, str(device), console, command):
            note("continue with the same command; finished runs and measurements are kept")
            return 130
        console.print(f"Look at {self.out / name}/summary.md", highlight=False, soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato reproduce`."""
    return parse_options(Reproduce, "reproduce", arguments)
