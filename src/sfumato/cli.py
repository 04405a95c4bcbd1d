"""The `sfumato` command."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sfumato import model_commands, report_command, reward_commands
from sfumato.engine.memory import keep_freed_memory
from sfumato.errors import UserError
from sfumato.evaluation.suites import SUITES, AnySuite, GuidanceSweep
from sfumato.experiment_commands import Reproduce
from sfumato.experiments import EXPERIMENTS
from sfumato.pretraining.pretrain import AnyPretrainConfig, pretrain
from sfumato.recipes import PRETRAIN_RECIPES, TRAIN_RECIPES
from sfumato.training.config import GRPOConfig

FINISHED, BAD_INPUT, INTERRUPTED = 0, 2, 130
"""exit statuses"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Align a generator with a reward (GRPO). Every setting of the recipe can be changed."""

    config: Annotated[GRPOConfig, tyro.conf.arg(name="")]
    run_dir: Path
    """folder for all that the run writes"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on from the newest checkpoint in run_dir"""

    def __call__(self) -> int:
        from sfumato.training.train import train

        console = Console()
        if not train(self.config, self.run_dir, resume=self.resume, console=console):
            return INTERRUPTED
        console.print(f"Look at {self.run_dir}/before_after.png and {self.run_dir}/curves.png", highlight=False)
        return FINISHED


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train from scratch: a generator (first its tokenizer, then the transformer on its tokens), or a classifier."""

    data: Path
    """folder of images, one sub-folder a class, or the unpacked npm package emoji-datasource-google"""
    config: Annotated[AnyPretrainConfig, tyro.conf.arg(name="")]
    run_dir: Path
    """folder for all that the run writes; the result is its model/"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on from the checkpoints in run_dir"""

    def __call__(self) -> int:
        from sfumato.interrupt import catch_interrupt
        from sfumato.training.logger import PretrainingView

        console = Console()
        with catch_interrupt() as interrupt, PretrainingView(console).open() as view:
            finished = pretrain(
                self.config, self.data, self.run_dir, resume=self.resume, report=view.show, interrupt=interrupt
            )
        console.print(f"{'Done' if finished else 'Stopped, saved'}: {self.run_dir}", highlight=False)
        return FINISHED if finished else INTERRUPTED


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure models and images, side by side. Another suite (--suite) has other options."""

    targets: tyro.conf.Positional[tuple[str, ...]]
    """models (bundled, run folder, checkpoint, released), folders of images, .npz files; the first is compared with"""
    suite: Annotated[AnySuite, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
    out: Path | None = None
    """folder to write; an evaluation that was interrupted goes on there"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import join
        from sfumato.evaluation.runner import evaluate
        from sfumato.evaluation.tables import metrics, number, to_markdown

        console, progress = Console(), Console(stderr=True, highlight=False)
        try:
            results = evaluate(self.suite, self.targets, self.out, join(self.device).device, progress.print)
        except KeyboardInterrupt:
            kept = "nothing is kept without --out" if self.out is None else f"the same command goes on in {self.out}"
            progress.print(f"Stopped; {kept}", soft_wrap=True)
            return INTERRUPTED
        name, measurement = next(iter(results.items()))
        if len(results) == 1 and len(measurement) < 6:
            line = "  ".join(f"{metric} {number(measurement[metric].value)}" for metric in metrics(results))
            console.print(f"{line}  ({name})", highlight=False, soft_wrap=True, markup=False)
        else:
            console.print(to_markdown(results), highlight=False, soft_wrap=True, markup=False)
        for path in [] if self.out is None else [self.out / "results.md", *self.out.glob("results.png")]:
            console.print(str(path), highlight=False, soft_wrap=True)
        return FINISHED


OTHERS = {**report_command.COMMANDS, **model_commands.COMMANDS, **reward_commands.COMMANDS}
"""Commands that stand in modules of their own, each with a line of help."""
COMMANDS = {
    "train": "align a generator with a reward (GRPO)",
    "pretrain": "train a generator from scratch on images",
    "evaluate": "measure models and images: accuracy, rewards, FID, diversity, entropy, benchmarks of prompts",
    "reproduce": "repeat an experiment of the papers: runs, measurements, plot, claims",
    **{name: line for name, (_, line) in OTHERS.items()},
}


def parse(arguments: list[str]) -> Callable[[], int] | None:
    """The command that the arguments ask for; None if they asked for a list that is now printed.

    Raises:
        UserError: there is no such command or recipe.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        list_choices(
            "sfumato COMMAND ...", "Online reinforcement learning for autoregressive image generators.", COMMANDS
        )
        return None
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        Console().print(version("sfumato"), highlight=False)
        return None
    if name == "train":
        recipe = choose("train", "recipe", rest, TRAIN_RECIPES)
        if recipe is None:
            return None
        defaults = Train(config=TRAIN_RECIPES[recipe][1](), run_dir=run_dir(recipe))
        return parse_options(Train, f"train {recipe}", rest[1:], defaults)
    if name == "pretrain":
        recipe = choose("pretrain", "recipe", rest, PRETRAIN_RECIPES)
        if recipe is None:
            return None
        config, folder = PRETRAIN_RECIPES[recipe][1](), run_dir(f"pretrain-{recipe}")
        defaults = Pretrain(config=config, run_dir=folder, data=tyro.MISSING)
        return parse_options(Pretrain, f"pretrain {recipe}", rest[1:], defaults)
    if name == "evaluate":
        suite, rest = choose_suite(rest)
        return parse_options(Evaluate, name, rest, Evaluate(suite=suite, targets=()))
    if name == "reproduce":
        experiment = choose("reproduce", "experiment", rest, EXPERIMENTS)
        return None if experiment is None else parse_options(Reproduce, name, rest, None)
    if name not in OTHERS:
        raise UserError(f"command: there is no {name!r}; {suggest(name, COMMANDS)}")
    return parse_options(OTHERS[name][0], name, rest, None)


CONSTRUCTORS = ConstructorRegistry()


@CONSTRUCTORS.primitive_rule
def named_weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Rewards as names and weights that replace the recipe's; tyro itself would only let those of the recipe change."""

    def parse_pairs(arguments: list[str]) -> dict[str, float]:
        if len(arguments) % 2:
            raise UserError(f"{' '.join(arguments)} are not pairs of a name and its weight")
        return {name: float(weight) for name, weight in zip(arguments[::2], arguments[1::2], strict=True)}

    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME WEIGHT ...",
        instance_from_str=parse_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [str(part) for pair in weights.items() for part in pair],
    )


def parse_options(command: type, name: str, arguments: list[str], defaults: object) -> Callable[[], int]:
    """Typed options of a command, with help from its docstrings.

    Raises:
        UserError: an option is unknown, missing or malformed; in one line, where tyro would draw a box.
    """
    default = tyro.MISSING_NONPROP if defaults is None else defaults
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), CONSTRUCTORS:
            return tyro.cli(  # pyright: ignore[reportReturnType]
                command, prog=f"sfumato {name}", args=arguments, default=default, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as error:
        if not error.code:  # help was asked for and printed
            raise
        problem, suggestions = read_complaint(complaint.getvalue())
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions and "nrecognized" in problem else ""
        raise UserError(f"{problem}{hint}; see sfumato {name} --help") from None


def read_complaint(box: str) -> tuple[str, list[str]]:
    """What tyro's box says in its first section, and the options that later ones name. Where the output is not
    Unicode the box has no sides and rules of hyphens. A complaint of a settings class names its field itself."""
    sections: list[list[str]] = [[]]
    for line in (line.strip(" │") for line in box.splitlines()[1:]):
        if line.strip("─-╰╯"):
            sections[-1].append(line)
        elif sections[-1]:
            sections.append([])
    problem, *rest = sections
    suggestions = [line.split()[0] for section in rest for line in section if line.startswith("--")]
    return re.sub(r"^Error parsing [A-Za-z]\S*: ", "", " ".join(problem)).rstrip("."), suggestions[:3]


def run_dir(recipe: str) -> Path:
    """Where a recipe's run goes if the user does not say."""
    return Path("runs") / recipe


def choose(command: str, kind: str, arguments: list[str], choices: Mapping[str, tuple[str, object]]) -> str | None:
    """The choice named first, or None after listing them all with their lines.

    Raises:
        UserError: there is no such choice.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = f"sfumato {command} {kind.upper()}"
        lines = {name: line for name, (line, _) in choices.items()}
        list_choices(f"{usage} ...", f"`{usage} --help` lists the options of one.", lines)
        return None
    if arguments[0] not in choices:
        raise UserError(f"{kind}: there is no {arguments[0]!r}; {suggest(arguments[0], choices)}")
    return arguments[0]


def choose_suite(arguments: list[str]) -> tuple[AnySuite, list[str]]:
    """The suite that `--suite NAME` asks for, and the other arguments; accuracy if there is none.

    Raises:
        UserError: there is no such suite.
    """
    name, rest = take_option("suite", "accuracy", arguments)
    if name not in SUITES:
        raise UserError(f"suite: there is no {name!r}; {suggest(name, SUITES)}")
    suite = SUITES[name]()
    if isinstance(suite, GuidanceSweep):
        name, rest = take_option("of", "accuracy", rest)
        inner = SUITES[name]() if name in SUITES else suite
        if isinstance(inner, GuidanceSweep):
            known = [known for known, kind in SUITES.items() if kind is not GuidanceSweep]
            raise UserError(f"of: there is no suite {name!r} to sweep; give one of {', '.join(known)}")
        suite = dataclasses.replace(suite, of=inner)
    return suite, rest


def take_option(name: str, default: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the other arguments."""
    value, rest = default, list(arguments)
    for position, argument in enumerate(arguments):
        if argument == f"--{name}" and position + 1 < len(arguments):
            value, rest = arguments[position + 1], [*arguments[:position], *arguments[position + 2 :]]
        elif argument.startswith(f"--{name}="):
            value, rest = argument.removeprefix(f"--{name}="), [*arguments[:position], *arguments[position + 1 :]]
    return value, rest


def suggest(name: str, known: Mapping[str, object]) -> str:
    """What the user may have meant."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"give one of {', '.join(known)}"


def list_choices(usage: str, text: str, choices: Mapping[str, str]) -> None:
    """Usage, a line of text, and the choices with a line each."""
    console, table = Console(), Table.grid(padding=(0, 2))
    for name, line in choices.items():
        table.add_row(f"  [bold]{name}[/]", escape(line))
    console.print(f"usage: {usage}\n\n{text}\n", highlight=False, markup=False)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit status: 0 done, 2 bad input, 130 interrupted with everything saved, 1 a bug.

    Bad input is one line; a bug shows its traceback. `SFUMATO_DEBUG=1` shows the traceback of both.
    """
    keep_freed_memory()
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        return FINISHED if command is None else command()
    except UserError as error:
        if os.environ.get("SFUMATO_DEBUG", "") not in ("", "0"):
            raise
        print("sfumato:", " ".join(str(error).split()), file=sys.stderr)  # noqa: T201 (one line, whatever it holds)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
