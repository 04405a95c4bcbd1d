"""Run an experiment: its training runs, its evaluations, and its output files."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sfumato.data.pictures import save_picture, to_pictures
from sfumato.emoji.source import EmojiImages
from sfumato.errors import UserError
from sfumato.evaluation.measurement import Measurement
from sfumato.evaluation.runner import evaluate
from sfumato.experiments.experiment import BASE, Experiment, Findings, over_seeds
from sfumato.experiments.jobs import Job, run_jobs
from sfumato.experiments.outputs import write_numbers, write_pictures, write_plot, write_summary
from sfumato.files import check_writable, locked, read_lines, read_metrics, write_atomically
from sfumato.objectives import name_of
from sfumato.training.run_folder import flat
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig, to_json

FILES = ("plot.png", "pictures.png", "numbers.csv", "summary.md")
"""Output files of an experiment."""


def reproduce(
    name: str,
    experiment: Experiment,
    out: Path,
    work: Path,
    device: str,
    console: Console,
    command: str = "",
    seed: int = 0,
) -> bool:
    """Do the missing runs, measure, and write plot, pictures, numbers and summary to `out/NAME`.

    Runs are stored in `work/runs` under names derived from their settings, so that experiments share them; evaluations
    are stored in `work/evaluations`. Both continue where they were interrupted. The summary shows `command`, or
    `sfumato reproduce NAME` if it is empty. Returns False if a run was interrupted.

    Raises:
        UserError: a setting is wrong, or a folder contains something else or is in use.
    """
    place = out / name
    check_place(place)
    check_writable("work", work)
    with locked("out", place):
        seeded = with_seed(experiment, seed)
        found = find(name, seeded, work, device, console, seed)
        if found is None:
            return False
        write_files(seeded, *found, place, command or f"sfumato reproduce {name}")
    return True


def reproduce_seeds(
    name: str,
    experiment: Experiment,
    out: Path,
    work: Path,
    device: str,
    console: Console,
    command: str,
    jobs: Sequence[Job],
    workers: int,
) -> bool:
    """Reproduce an experiment with several seeds, as separate processes, and judge it by all of them.

    Args:
        name: name of the experiment.
        experiment: the experiment.
        out: folder for the results, as for `reproduce`; the pictures are those of the first seed.
        work: folder for runs and evaluations.
        device: device.
        console: shows what is done.
        command: command for the summary.
        jobs: one job for each seed, 0, 1, ..., that calls `reproduce` with this seed and the same `work`.
        workers: number of jobs at a time.

    Returns:
        False if Ctrl-C ended it.

    Raises:
        UserError: a setting is wrong, a folder contains something else or is in use, or a job failed.
    """
    place = out / name
    check_place(place)
    check_writable("work", work)
    for config in experiment.runs.values():
        config.validate()
    with locked("out", place):
        done = run_jobs(jobs, workers, lambda line: console.print(f"{name}: {line}", highlight=False, soft_wrap=True))
        if done.failed:
            job, line = next(iter(done.failed.items()))
            raise UserError(f"seeds: {len(done.failed)} failed, the first is {job}: {line}; see its log, start again")
        if done.interrupted:
            return False
        quiet = Console(quiet=True)
        found = [find(name, with_seed(experiment, n), work, device, quiet, n) for n in range(len(jobs))]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return False
        write_files(experiment, over_seeds([findings for findings, _ in known]), known[0][1], place, command)
    return True


SEED_STRIDE = 10**6
"""Distance between the seeds of the first images that are measured for consecutive seeds of an experiment."""


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """Return the experiment with other random choices: of the runs, and of the images that are measured."""
    if not seed:
        return experiment
    runs = {run: dataclasses.replace(config, seed=config.seed + seed) for run, config in experiment.runs.items()}
    suites = {name: _with_seed(suite, seed * SEED_STRIDE) for name, suite in experiment.suites.items()}
    return dataclasses.replace(experiment, runs=runs, suites=suites)


def _with_seed(suite: Any, shift: int) -> Any:
    if hasattr(suite, "of"):  # a suite that measures another one at several settings
        return dataclasses.replace(suite, of=_with_seed(suite.of, shift))
    return dataclasses.replace(suite, drawing=dataclasses.replace(suite.drawing, seed=suite.drawing.seed + shift))


def find(
    name: str, experiment: Experiment, work: Path, device: str, console: Console, seed: int
) -> tuple[Findings, dict[str, Path]] | None:
    """Do the missing runs and measurements; return all results and the folders of the runs, or None if a run was
    interrupted."""
    runs = {run: dataclasses.replace(config, device=device) for run, config in experiment.runs.items()}
    for config in runs.values():
        config.validate()
    folders = {run: work / "runs" / folder_name(config) for run, config in runs.items()}
    evaluations = work / "evaluations" / (f"{name}-seed-{seed}" if seed else name)

    def measure(moment: str, targets: Mapping[str, str]) -> dict[str, dict[str, Measurement]]:
        measured = {}
        for suite_name, suite in experiment.suites.items():
            console.print(f"{name}: measuring {suite_name}, {moment} training", highlight=False, soft_wrap=True)
            folder = evaluations / suite_name / moment
            results = evaluate(
                suite, list(targets.values()), folder, torch.device(device), lambda line: None, option="work"
            )
            measured[suite_name] = dict(zip(targets, results.values(), strict=True))
        return measured

    before = measure("before", {BASE: experiment.model})  # missing requirements of a suite show up before any long work
    for number, (run, folder) in enumerate(folders.items(), start=1):
        if not is_finished(folder, runs[run]):
            console.print(f"{name}: run {number} of {len(folders)}, {run}: {folder}", highlight=False, soft_wrap=True)
            if not train(runs[run], folder, resume=(folder / "config.json").exists(), console=console):
                return None
    after = measure("after", {run: str(folder) for run, folder in folders.items()})
    measured = {suite: before[suite] | after[suite] for suite in experiment.suites}
    return Findings({run: read_curves(folder) for run, folder in folders.items()}, measured), folders


def write_files(
    experiment: Experiment, findings: Findings, folders: Mapping[str, Path], place: Path, command: str
) -> None:
    """Write the output files of an experiment."""
    place.mkdir(parents=True, exist_ok=True)
    write_numbers(findings, place / "numbers.csv")
    write_plot(experiment, findings, place / "plot.png")
    write_pictures(folders, place / "pictures.png")
    write_summary(command, experiment, findings, place / "summary.md")


def reference_images(path: Path, folder: Path, count: int = 2048) -> Path:
    """Return the path of real images: the given path, or, if that is the emoji npm package, a folder of emoji composed
    on scenes as in the generators' training data.

    Raises:
        UserError: the path does not exist.
    """
    if not path.exists():
        raise UserError(f"reference: {path} does not exist; give a folder of images, an .npz file or the emoji package")
    if not (path / "emoji.json").is_file():
        return path
    finished = folder / "emoji"
    if not finished.is_dir():
        source = EmojiImages(path)
        rng = torch.Generator().manual_seed(0)
        index = torch.multinomial(source.weights, count, replacement=True, generator=rng)

        def write(place: Path) -> None:
            for first in range(0, count, 64):
                for number, picture in enumerate(to_pictures(source[index[first : first + 64]][0]), start=first):
                    save_picture(picture, place / f"{number:05d}.png")

        folder.mkdir(parents=True, exist_ok=True)

        write_atomically(finished, write)
    return finished


def folder_name(config: TrainConfig) -> str:
    """Return a folder name from the model, the rewards and a digest of all settings except the devices, so that the
    same run has the same folder. Settings with their default values do not count, so that a version with more settings
    finds the runs of an earlier one."""
    default = TrainConfig(model="", device=config.device, reward_device=config.reward_device)
    default = flat(to_json(dataclasses.replace(default, objective=type(config.objective)())))
    settings = {name: value for name, value in flat(to_json(config)).items() if default.get(name) != value}
    settings["objective"] = name_of(config.objective)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    rewards = re.sub(r"[^a-z0-9]+", "-", " ".join(config.reward).lower()).strip("-")
    return f"{Path(config.model).name}-{rewards[:40].strip('-')}-{digest}"


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Return whether the run has its last checkpoint."""
    return (folder / f"checkpoints/step-{config.steps:06d}").is_dir()


def read_curves(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, including those of its held-out set, and of its fixed set (`fixed/...`)."""
    fixed = [
        {"step": row["step"], **{f"fixed/{name}": row[name] for name in ("entropy", "reward_mean")}}
        for row in read_lines(folder / "fixed_set.jsonl")
    ]
    return [*read_metrics(folder), *fixed]


def check_place(place: Path) -> None:
    """Refuse to write into a folder with other files, or to a path that cannot be a folder.

    Raises:
        UserError: the folder contains other files, or is not writable.
    """
    check_writable("out", place)
    if place.is_dir():
        others = sorted(path.name for path in place.iterdir() if path.name not in FILES and path.name[0] != ".")
        if others:
            raise UserError(f"out: {place} contains {others[0]}, which no experiment wrote; choose another --out")
