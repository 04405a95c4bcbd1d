"""`sfumato evaluate TARGET ...`."""

import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sfumato.cli.listing import check_known, list_choices
from sfumato.cli.options import parse_options, renamed, take_option
from sfumato.errors import UserError
from sfumato.evaluation.suites import SUITES, AnySuite, GuidanceSweep


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure models and images side by side. --suite NAME chooses what is measured (default: accuracy); each suite has
    options of its own."""

    targets: tyro.conf.Positional[tuple[str, ...]]
    """models (bundled, released, run or checkpoint folder), image folders or .npz files; the first is the baseline"""
    suite: Annotated[AnySuite, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
    out: Path | None = None
    """folder for the results; an interrupted evaluation continues there"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device
        from sfumato.evaluation.runner import evaluate
        from sfumato.evaluation.tables import metrics, number, to_markdown

        console, progress = Console(markup=False), Console(stderr=True, highlight=False, markup=False)
        try:
            say = functools.partial(progress.print, soft_wrap=True)
            results = evaluate(self.suite, self.targets, self.out, find_device(self.device), say)
        except KeyboardInterrupt:
            kept = "nothing is saved without --out" if self.out is None else f"the same command resumes in {self.out}"
            progress.print(f"Stopped; {kept}", soft_wrap=True)
            return 130
        name, measurement = next(iter(results.items()))
        if len(results) == 1 and len(measurement) < 6:
            line = "  ".join(f"{metric} {number(measurement[metric].value)}" for metric in metrics(results))
            console.print(f"{line}  ({name})", highlight=False, soft_wrap=True, markup=False)
        else:
            console.print(to_markdown(results), highlight=False, soft_wrap=True, markup=False)
        for path in [] if self.out is None else [self.out / "results.md", *self.out.glob("results.png")]:
            console.print(str(path), highlight=False, soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the targets, the suite and its options. Help without a suite also lists the suites."""
    suite, rest = choose_suite(renamed(arguments, {"neighbours": "neighbors"}))
    check_rewards(rest)
    try:
        return parse_options(Evaluate, "evaluate", rest, Evaluate(suite=suite, targets=()))
    except SystemExit:  # help has been printed
        if len(rest) == len(arguments):
            text = "The options above are those of accuracy. Each suite has its own:"
            list_choices("sfumato evaluate --suite SUITE --help", text, {n: about(s) for n, s in SUITES.items()})
        raise


def check_rewards(arguments: list[str]) -> None:
    """Refuse `--rewards` with nothing after it, which tyro would take as no rewards.

    Raises:
        UserError: no reward follows.
    """
    for option, following in itertools.pairwise([*arguments, "--"]):
        if option in ("--rewards", "--of.rewards") and following.startswith("--"):
            raise UserError(f"rewards: no reward follows {option}; give at least one, such as brightness")


def about(suite: type[AnySuite]) -> str:
    """Return what a suite measures in a few words: the beginning of its docstring."""
    return re.split(r"[.;:] |\.$", " ".join(inspect.cleandoc(suite.__doc__ or "").split()))[0]


def choose_suite(arguments: list[str]) -> tuple[AnySuite, list[str]]:
    """Return the suite that `--suite NAME` chooses (accuracy by default), and the other arguments.

    Raises:
        UserError: the suite does not exist.
    """
    name, rest = take_option("suite", "accuracy", arguments)
    try:
        check_known("suite", name, SUITES)
    except UserError as error:
        raise UserError(f"{error} (sfumato evaluate --help describes the suites)") from None
    suite = SUITES[name]()
    if isinstance(suite, GuidanceSweep):
        name, rest = take_option("of", "accuracy", rest)
        check_known("of", name, [known for known, kind in SUITES.items() if kind is not GuidanceSweep])
        inner = SUITES[name]()
        assert not isinstance(inner, GuidanceSweep)
        suite = dataclasses.replace(suite, of=inner)
    return suite, rest
