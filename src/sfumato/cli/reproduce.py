"""`sfumato reproduce EXPERIMENT` and `sfumato reproduce STUDY`."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.cli.train import parse_start
from sfumato.errors import UserError
from sfumato.experiments import EXPERIMENTS, ScaleName
from sfumato.experiments.studies import STUDIES, Study
from sfumato.notes import note

if TYPE_CHECKING:
    from sfumato.experiments.jobs import Job
    from sfumato.experiments.study import Plan


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
    seed: int = 0
    """seed of the runs and of the images that are measured"""
    seeds: int = 1
    """number of seeds, 0, 1, ...; with several, claims are judged by the mean over seeds and its interval"""
    jobs: int | None = None
    """number of seeds at a time, each a process with one thread; the number of cores if not given, 1 on a GPU"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.engine_config import at_least, check_seed
        from sfumato.engine.process import find_device
        from sfumato.experiments.reproduction import reference_images, reproduce, reproduce_seeds

        check_seed(self.seed)
        at_least("seeds", self.seeds, 1)
        if self.seed and self.seeds > 1:
            raise UserError(f"seed: {self.seed} and --seeds {self.seeds} exclude each other; give one of them")

        reference = None if self.reference is None else reference_images(self.reference, self.work / "reference")
        experiment, console = EXPERIMENTS[self.experiment].build(self.scale, reference), Console(markup=False)
        device = find_device(self.device)
        workers = workers_of(self.jobs, device.type)
        name, command = self.experiment, f"sfumato reproduce {self.experiment}"
        if self.scale != "emoji":
            name, command = f"{name}-{self.scale}", f"{command} --scale {self.scale}"
        place = (self.out, self.work, str(device), console)
        if self.seeds > 1:
            jobs = [self.job(seed, str(device)) for seed in range(self.seeds)]
            finished = reproduce_seeds(name, experiment, *place, f"{command} --seeds {self.seeds}", jobs, workers)
        else:
            finished = reproduce(
                name, experiment, *place, f"{command} --seed {self.seed}" if self.seed else command, self.seed
            )
        if not finished:
            note("continue with the same command; finished runs and measurements are kept")
            return 130
        console.print(f"Look at {self.out / name}/summary.md", highlight=False, soft_wrap=True)
        return 0

    def job(self, seed: int, device: str) -> "Job":
        """Return the command for one seed, whose own summary is in `work/seeds`."""
        from sfumato.experiments.jobs import Job

        folder = self.work / "seeds" / f"seed-{seed}"
        options = {"seed": seed, "scale": self.scale, "out": folder, "work": self.work, "device": device}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += [] if self.reference is None else ["--reference", str(self.reference)]
        command = [sys.executable, "-m", "sfumato", "reproduce", self.experiment, *words]
        return Job(f"seed {seed}", command, folder / f"{self.experiment}-{self.scale}.log")


def workers_of(jobs: int | None, device: str) -> int:
    """Return the number of processes at a time.

    Raises:
        UserError: the given number is below 1.
    """
    from sfumato.engine.engine_config import at_least

    if jobs is None:
        return 1 if device == "cuda" else os.cpu_count() or 1
    at_least("jobs", jobs, 1)
    return jobs


@dataclass(frozen=True, kw_only=True)
class ReproduceStudy:
    """Compare methods at an equal budget of processor time, over several seeds. Runs are separate processes with one
    thread each; those that are done are not repeated."""

    study: tyro.conf.Positional[str]
    """name of the study; `sfumato reproduce` lists them"""
    seeds: int = 5
    """number of seeds of each arm"""
    seconds: float = 60.0
    """processor seconds of training of each run (on a GPU: seconds)"""
    jobs: int | None = None
    """number of runs at a time; the number of cores if not given, 1 on a GPU"""
    data: Path | None = None
    """real images, which some arms need: the unpacked npm package emoji-datasource-google, or a folder of images"""
    out: Path = Path("results")
    """folder for the results: STUDY.md, STUDY.png and STUDY.csv"""
    work: Path = Path("runs/reproduce")
    """folder for runs, shared by all studies"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.engine_config import at_least
        from sfumato.engine.process import find_device
        from sfumato.experiments.study import run_study

        at_least("seeds", self.seeds, 2)
        device = find_device(self.device)
        jobs = workers_of(self.jobs, device.type)
        console = Console(markup=False)
        finished = run_study(
            self.study,
            plan_of(STUDIES[self.study], self.seeds, self.seconds, str(device), self.data),
            out=self.out,
            work=self.work / "trials",
            jobs=jobs,
            command=f"sfumato reproduce {self.study} --seeds {self.seeds} --seconds {self.seconds:g} --jobs {jobs}"
            + ("" if self.data is None else f" --data {self.data}"),
            say=lambda line: console.print(line, highlight=False, soft_wrap=True),
        )
        if not finished:
            note("continue with the same command; finished runs are kept")
            return 130
        console.print(f"Look at {self.out / self.study}.md", highlight=False, soft_wrap=True)
        return 0


def plan_of(study: Study, seeds: int, seconds: float, device: str, data: Path | None) -> "Plan":
    """Read the options of all arms as `sfumato train` does. An arm with an unknown option, or without the data that it
    needs, is left out.

    Raises:
        UserError: the images do not exist.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"data: {data} is not a folder; give a folder of images or the unpacked emoji package")
    from sfumato.experiments.study import Option, Plan

    def option(*options: str) -> Option:
        # The folder is put in after splitting, so that its name may contain blanks.
        words = [word.replace("{data}", str(data)) for word in shlex.split(" ".join(options))]
        return Option(shlex.join(words), parse_start(words).config)

    arms, absent = {}, {}
    for name, words in study.arms.items():
        if "{data}" in words and data is None:
            absent[name] = "it needs real images; give --data"
            continue
        try:
            arms[name] = [option(study.base, words, choice) for choice in study.sweep]
        except UserError as error:
            absent[name] = str(error).partition(";")[0]
    untrained = {name: option(study.base, words) for name, words in study.untrained.items()}
    return Plan(study=study, arms=arms, untrained=untrained, absent=absent, seeds=seeds, seconds=seconds, device=device)


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato reproduce`."""
    command = ReproduceStudy if arguments[0] in STUDIES else Reproduce
    return parse_options(command, "reproduce", arguments)
