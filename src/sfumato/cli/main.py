"""The `sfumato` command: selection of the command, and the choices for its first argument.

The module of a command is imported only when the command is used, so lists and typos do not import torch.
"""

import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.cli.listing import check_known, list_choices
from sfumato.engine.cause import BAD_INPUT, FINISHED, INTERRUPTED, cause_of, is_full_disk, record_cause
from sfumato.engine.memory import keep_freed_memory
from sfumato.errors import SharedError, UserError
from sfumato.experiments import EXPERIMENTS
from sfumato.experiments.studies import STUDIES
from sfumato.notes import note
from sfumato.recipes import PRETRAIN_RECIPES, TRAIN_RECIPES


@dataclass(frozen=True)
class Command:
    """A command. Its `parse` function is in the module of the same name in this folder."""

    help: str
    """one-line description"""
    kind: str = ""
    """kind of the first argument, if it is one of `choices`"""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """choices for the first argument, by name; each has a one-line `help`"""
    instead: Mapping[str, str] = field(default_factory=dict)
    """what else may be given instead of a choice, and what it does"""


COMMANDS = {
    "train": Command(
        "align a generator with a reward (GRPO)",
        "recipe",
        TRAIN_RECIPES,
        {"--config FILE": "starts from the settings in a file", "--resume RUN_DIR": "continues a run"},
    ),
    "plan": Command(
        "tell whether a run fits its GPUs, before anything is loaded",
        "recipe",
        TRAIN_RECIPES,
        {"--config FILE": "starts from the settings in a file"},
    ),
    "launch": Command("train with several processes, one per GPU, on one or several machines"),
    "pretrain": Command("train a generator or a classifier from scratch on images", "recipe", PRETRAIN_RECIPES),
    "evaluate": Command("measure models and images: accuracy, rewards, FID, diversity, entropy, prompt benchmarks"),
    "reproduce": Command(
        "repeat an experiment from the papers, or a study: runs, measurements, plot, claims",
        "experiment",
        {**EXPERIMENTS, **STUDIES},
    ),
    "doctor": Command("say why a run may not learn, and what to change"),
    "report": Command("write a report on runs: one HTML file with pictures, curves, metrics and settings"),
    "compare": Command("compare runs in one table: the settings that differ, rewards, KL, time per step"),
    "playground": Command("open a page on which base models and aligned runs draw side by side"),
    "push": Command("write a model card for a run, and upload model and card to the Hugging Face Hub"),
    "sample": Command("draw images from a bundled model, a run, or a released checkpoint"),
    "classes": Command("list a model's classes"),
    "export": Command("write a model's weights under the names that the original code uses"),
    "rewards": Command("list the rewards and show which are ready on this machine, or try one"),
    "score": Command("score image files with a reward"),
    "serve": Command("serve a reward over HTTP from a separate environment"),
}
"""Commands by name."""


def parse(arguments: list[str]) -> Callable[[], int] | None:
    """Return the command to run, or None if the arguments only asked to print something, which is then done.

    Raises:
        UserError: the command, recipe, experiment or option does not exist.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        text = "Online reinforcement learning for autoregressive image generators."
        list_choices("sfumato COMMAND ...", text, {name: command.help for name, command in COMMANDS.items()})
        return None
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("sfumato"))  # noqa: T201
        return None
    if name == "--print-completion":
        from sfumato.cli.completion import completion

        print(completion(*rest))  # noqa: T201
        return None
    check_known("command", name, COMMANDS)
    command = COMMANDS[name]
    if command.choices:
        if not rest or rest[0] in ("-h", "--help"):
            usage = f"sfumato {name} {command.kind.upper()}"
            lines = {getattr(entry, "listed", "") or choice: entry.help for choice, entry in command.choices.items()}
            text = [f"`{usage} --help` lists the options."]
            text += [f"`sfumato {name} {form}` {effect}." for form, effect in command.instead.items()]
            list_choices(f"{usage} ...", " ".join(text), lines)
            return None
        if not (command.instead and rest[0].startswith("-")):
            check_known(command.kind, rest[0], command.choices)
    return importlib.import_module(f"sfumato.cli.{name}").parse(rest)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit status: 0 done, 2 bad input, 130 interrupted with everything saved, 1 a bug.

    Bad input prints one line; a bug shows its traceback. `SFUMATO_DEBUG=1` shows the traceback in both cases.
    """
    keep_freed_memory()
    if os.path.expanduser("~") == "~":  # a user that the system does not know, as in some containers
        os.environ["HOME"] = os.getcwd()
        note("this user has no home folder, so caches go to .cache here; set HOME to choose another place")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± or ü must not end a run
    status = run([with_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)])
    deadline = sys.modules.get("sfumato.rewards.deadline")
    if deadline is not None and deadline.is_stuck():  # the interpreter would wait for threads of that reward
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def with_home(argument: str) -> str:
    """Replace ~ at the beginning of an argument or an option's value; a shell leaves it alone in quotes and after =."""
    return re.sub(r"^(--[\w.-]+=)?~(?=/)", lambda found: (found[1] or "") + os.path.expanduser("~"), argument)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status."""
    try:
        command = parse(arguments)
        return FINISHED if command is None else command()
    except UserError as error:
        record_cause(cause_of(error))
        if os.environ.get("SFUMATO_DEBUG", "") not in ("", "0"):
            raise
        # What all processes of a machine say together is printed once.
        if not isinstance(error, SharedError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print("sfumato:", cause_of(error), file=sys.stderr)  # noqa: T201
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output, e.g. `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    except Exception as error:
        record_cause(cause_of(error))
        if not is_full_disk(error) or os.environ.get("SFUMATO_DEBUG", "") not in ("", "0"):
            raise
        text = "the disk is full; free some space and start again (a run with --resume). What was complete is kept"
        print(f"sfumato: disk: {text} ({cause_of(error)})", file=sys.stderr)  # noqa: T201
        return BAD_INPUT
