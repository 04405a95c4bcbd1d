"""Run a study: trials of all arms and seeds as separate processes, then its page."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.errors import UserError
from sfumato.experiments.jobs import Job, run_jobs
from sfumato.experiments.reproduction import folder_name
from sfumato.experiments.seeds import mean_of
from sfumato.experiments.studies import Study
from sfumato.experiments.study_page import Finished, Outcome, write_study
from sfumato.files import check_writable, locked, read_metrics, write_text
from sfumato.training.train_config import TrainConfig, to_json

FIRST_SWEEP_SEED, SWEEP_SEEDS = 1000, 2
"""Seeds with which the options of a sweep are compared."""
MANY_STEPS = 1_000_000
"""Number of steps, which no budget reaches."""


@dataclass(frozen=True)
class Option:
    """A way to train an arm: the words after `sfumato train`, and the settings that they stand for."""

    words: str
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study runs."""

    study: Study
    arms: Mapping[str, Sequence[Option]]
    """options to choose from, by arm"""
    untrained: Mapping[str, Option]
    absent: Mapping[str, str]
    """why an arm cannot be trained with this version, by arm"""
    seeds: int
    seconds: float
    """budget of each run in processor seconds"""
    device: str


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    arm: str
    config: TrainConfig
    trained: bool
    rewards: tuple[str, ...]

    def folder(self, work: Path) -> Path:
        """The folder of this trial; it is the same for all studies with the same settings and rewards."""
        judged = "-".join("".join(c if c.isalnum() else "-" for c in reward)[:20] for reward in self.rewards)
        return work / f"{'' if self.trained else 'untrained-'}{folder_name(self.config)}-{judged}"

    def job(self, work: Path) -> Job:
        """Write the trial's settings, and return the command that runs it."""
        folder = self.folder(work)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"config": to_json(self.config), "trained": self.trained, "rewards": self.rewards}
        write_text(folder / "trial.json", json.dumps(settings, indent=1) + "\n")
        name = f"{self.arm}, seed {self.config.seed}"
        return Job(name, [sys.executable, "-m", "sfumato.experiments.trial", str(folder)], folder / "log.txt")

    def outcome(self, work: Path) -> Outcome | None:
        """Return the result; None if there is none."""
        path = self.folder(work) / "measured.json"
        if not path.is_file():
            return None
        measured = json.loads(path.read_text())
        hardware = measured.pop("hardware")
        known = {name: math.nan if value is None else value for name, value in measured.items()}
        return Outcome(known, read_metrics(self.folder(work) / "run"), hardware, self.config)


def run_study(
    name: str, plan: Plan, *, out: Path, work: Path, jobs: int, command: str, say: Callable[[str], object]
) -> bool:
    """Run the trials that have no result yet, `jobs` at a time, and write `NAME.md`, `NAME.png` and `NAME.csv` to
    `out`. Returns False if Ctrl-C ended it; the same command continues.

    Raises:
        UserError: a setting is wrong, a folder is in use, or a trial failed; all others are then done.
    """
    for options in (*plan.arms.values(), plan.untrained.values()):
        for option in options:
            settled(option.config, 0, plan).validate()
    for field, folder in (("out", out), ("work", work)):
        check_writable(field, folder)
    for arm, reason in plan.absent.items():
        say(f"{name}: leaving out {arm}: {reason}")
    with locked("work", work):
        sweep = {
            arm: [[_trial(plan, arm, option, FIRST_SWEEP_SEED + n) for n in range(SWEEP_SEEDS)] for option in options]
            for arm, options in plan.arms.items()
            if len(options) > 1
        }
        trials = [trial for options in sweep.values() for seeds in options for trial in seeds]
        if not _run(trials, f"{name}, sweep", work, jobs, say):
            return False
        swept = {
            arm: {
                option.words: [_judged(trial, plan, work) for trial in seeds]
                for option, seeds in zip(plan.arms[arm], options, strict=True)
            }
            for arm, options in sweep.items()
        }
        chosen = {arm: _best(options, swept.get(arm)) for arm, options in plan.arms.items()}
        arms = {
            **{arm: [_trial(plan, arm, o, seed, trained=False) for seed in range(plan.seeds)]
               for arm, o in plan.untrained.items()},
            **{arm: [_trial(plan, arm, o, seed) for seed in range(plan.seeds)] for arm, o in chosen.items()},
        }  # fmt: skip
        # Seed by seed, so that arms meet the same machine, and what is done early is a smaller study.
        trials = [arm[seed] for seed in range(plan.seeds) for arm in arms.values()]
        if not _run(trials, name, work, jobs, say):
            return False
        outcomes = {arm: [trial.outcome(work) for trial in trials] for arm, trials in arms.items()}
        finished = Finished(
            study=plan.study,
            outcomes={arm: [outcome for outcome in results if outcome] for arm, results in outcomes.items()},
            options={arm: o.words for arm, o in {**plan.untrained, **chosen}.items()},
            untrained=tuple(plan.untrained),
            swept=swept,
            absent=plan.absent,
            seconds=plan.seconds,
            command=command,
        )
        out.mkdir(parents=True, exist_ok=True)
        write_study(name, finished, out)
    return True


def settled(config: TrainConfig, seed: int, plan: Plan) -> TrainConfig:
    """Return the settings of a trial: those of the arm with the budget in place of a number of steps, at a constant
    learning rate (a schedule would have to know the number of steps), without the run's own measurements."""
    return replace(
        config,
        engine=replace(config.engine, final_learning_rate=config.engine.learning_rate),
        seed=seed,
        steps=MANY_STEPS,
        stop_after_seconds=plan.seconds,
        eval_images=0,
        sample_every=MANY_STEPS,
        save_every=MANY_STEPS,  # writing a checkpoint beside the next step would use its processor time
        keep_checkpoints=1,
        device=plan.device,
    )


def _trial(plan: Plan, arm: str, option: Option, seed: int, *, trained: bool = True) -> Trial:
    return Trial(arm, settled(option.config, seed, plan), trained, plan.study.rewards)


def _run(trials: Sequence[Trial], title: str, work: Path, jobs: int, say: Callable[[str], object]) -> bool:
    """Run the trials without a result; return False if Ctrl-C ended them."""
    missing = {trial.folder(work): trial for trial in trials if not (trial.folder(work) / "measured.json").is_file()}
    if trials:
        say(f"{title}: {len(trials) - len(missing)} of {len(trials)} runs are done, {len(missing)} to do")
    done = run_jobs([trial.job(work) for trial in missing.values()], jobs, lambda line: say(f"{title}: {line}"))
    if done.failed:
        first, line = next(iter(done.failed.items()))
        raise UserError(
            f"arms: {len(done.failed)} runs failed, the first is {first}: {line}; see log.txt in its folder in {work}, "
            "and start again"
        )
    return not done.interrupted


def _judged(trial: Trial, plan: Plan, work: Path) -> float:
    outcome = trial.outcome(work)
    return math.nan if outcome is None else outcome.figure(plan.study.judged)


def _best(options: Sequence[Option], swept: Mapping[str, Sequence[float]] | None) -> Option:
    """Return the option with the highest mean in the sweep."""
    if swept is None:
        return options[0]
    return max(options, key=lambda option: mean_of(swept[option.words]).value)
