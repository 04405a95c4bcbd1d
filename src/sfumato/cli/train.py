"""`sfumato train RECIPE`, `sfumato train --config FILE` and `sfumato train --resume RUN_DIR`."""

import dataclasses
import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sfumato.cli.doctor import tell_troubles
from sfumato.cli.listing import check_known
from sfumato.cli.options import parse_options, renamed, run_dir_of, take_option
from sfumato.errors import UserError
from sfumato.notes import note
from sfumato.objectives import find_objective, name_of
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training.train_config import TrainConfig

RENAMED = {
    "labels-per-step": "groups-per-step",
    "loss.": "objective.",
    "combine": "objective",
}
"""New names of the options of version 0.1."""

SYNONYMS = {
    "lr": "learning-rate",
    "beta": "objective.kl-weight",
    "kl-coef": "objective.kl-weight",
    "kl-weight": "objective.kl-weight",
    "clip": "objective.clip",
    "clip-range": "objective.clip",
    "epsilon": "objective.clip",
    "num-generations": "group-size",
    "batch-size": "groups-per-step",
    "mini-batch-size": "minibatch-size",
    "max-steps": "steps",
    "epochs": "steps",
    "num-train-epochs": "steps",
    "output-dir": "run-dir",
    "out": "run-dir",
    "report-to": "track",
    "wandb": "track wandb",
    "bf16": "precision bf16",
    "fp16": "precision bf16",
    "mixed-precision": "precision",
    "gradient-checkpointing": "activation-checkpointing 1",
    "gradient-accumulation-steps": "micro-batch-size",
    "use-lora": "lora-rank 16",
    "lora-r": "lora-rank",
    "cfg": "guidance",
    "cfg-scale": "guidance",
    "guidance-scale": "guidance",
    "prompt-file": "prompts",
    "rewards": "reward",
    "reward-funcs": "reward",
    "checkpoint": "weights",
}
"""Our options for those of other programs, for hints."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Align a generator with a reward. Every setting of the recipe is an option. --objective NAME chooses the
    objective: grpo, dr-grpo, gdpo, dapo, gspo, cispo, rloo, scale-grpo, prefix-grpo,
    random-prefix-grpo, tree-grpo, best-of-n, dpo, cca, va-pi, or path/to/file.py:Class."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run_dir: Path
    """folder for everything that the run writes"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue from the newest checkpoint in run_dir"""

    def __call__(self) -> int:
        from sfumato.training.train import train

        console = Console(markup=False)
        if not train(self.config, self.run_dir, resume=self.resume, console=console):
            note(f"continue with: sfumato train --resume {shlex.quote(str(self.run_dir))}")
            return 130
        if int(os.environ.get("RANK", 0)) == 0:  # one of several processes speaks for all
            console.print(f"Look at {self.run_dir}/before_after.png and {self.run_dir}/curves.png", highlight=False)
            tell_troubles(console, self.run_dir)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse a recipe, a file of settings, or both, or `--resume` and a run folder, and options that change settings."""
    show, rest = "--print-config" in arguments, [argument for argument in arguments if argument != "--print-config"]
    if any(argument.partition("=")[0] == "--config" for argument in rest) or not rest[:1] or rest[0][:1] != "-":
        command = parse_start(rest)
    else:
        command = parse_resumption(rest)
    if not show:
        return command

    def print_config() -> int:
        from sfumato.cli.config_file import to_yaml

        print(to_yaml(command.config, command.run_dir), end="")  # noqa: T201
        return 0

    return print_config


@dataclass(frozen=True)
class Start:
    """What a new run starts from, before the options of the command line."""

    name: str
    """what the user types for it"""
    config: TrainConfig
    run_dir: Path
    rest: list[str]
    """arguments that are still to be parsed"""
    located: Callable[[], AbstractContextManager[None]] = nullcontext
    """adds file and line to an error that is about a setting in a file"""


def parse_start(arguments: list[str]) -> Train:
    """Parse a recipe or a file of settings, and the options that change them.

    Raises:
        UserError: an option or a setting in the file is unknown, malformed or out of range.
    """
    start = start_of(arguments)
    defaults = Train(config=start.config, run_dir=start.run_dir)
    command = parse_options(Train, f"train {start.name}", start.rest, defaults, SYNONYMS)
    with start.located():
        command.config.validate(int(os.environ.get("WORLD_SIZE", 1)))
    return command


def start_of(arguments: list[str]) -> Start:
    """Read the recipe and the file that the arguments name. Settings in the file replace those of the recipe.

    Raises:
        UserError: there is neither, the recipe is unknown, or a setting in the file is unknown or malformed.
    """
    path, rest = take_option("config", "", arguments)
    recipe, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else (None, rest)
    if not path:
        check_known("recipe", recipe or " ".join(rest[:1]), TRAIN_RECIPES)
        assert recipe is not None
        config, rest = config_of(recipe, rest)
        return Start(recipe, config, Path(run_dir_of(recipe)), rest)
    from sfumato.cli.config_file import read_config_file

    rest = renamed(rest, RENAMED)
    file = read_config_file(Path(path).expanduser()).without(rest)
    recipe = recipe or file.text("recipe")
    with file.located():
        if recipe is not None:
            check_known("recipe", recipe, TRAIN_RECIPES)
        config = file.complete or (TrainConfig(model="") if recipe is None else TRAIN_RECIPES[recipe].build())
        config, changes = with_options(config, file.arguments(config))
        config = parse_options(TrainConfig, "train", changes, config)
    config, rest = with_options(config, rest)
    if not config.model and not any(argument.partition("=")[0] == "--model" for argument in rest):
        raise UserError(f"model: {file.path} names none; add model: emoji-var, or recipe: NAME to start from a recipe")
    run_dir = Path(file.text("run_dir") or run_dir_of(file.path.stem)).expanduser()
    return Start(f"--config {path}", config, run_dir, rest, file.located)


def parse_resumption(arguments: list[str]) -> Train:
    """Parse `--resume RUN_DIR` and the options that change the settings in the `config.json` of the run.

    Raises:
        UserError: there is no run folder, or an option is unknown or malformed.
    """
    folder, rest = take_option("resume", "", arguments)
    if not folder:
        check_known("recipe", arguments[0], TRAIN_RECIPES)
    from sfumato.training.run_folder import read_run_config

    saved = read_run_config(Path(folder))
    saved.validate()  # someone may have edited the file
    config, rest = with_options(saved, rest)
    config = parse_options(TrainConfig, f"train --resume {folder}", rest, config)
    return Train(config=config, run_dir=Path(folder), resume=True)


def config_of(recipe: str, arguments: list[str]) -> tuple[TrainConfig, list[str]]:
    """Return the config of a recipe with the objective that the arguments name, and the other arguments."""
    return with_options(TRAIN_RECIPES[recipe].build(), arguments)


def with_options(config: TrainConfig, arguments: list[str]) -> tuple[TrainConfig, list[str]]:
    """Return the config with the objective that the arguments name, and the other arguments under their new names."""
    name, rest = take_option("objective", "", renamed(arguments, RENAMED))
    if name:
        config = with_objective(config, "grpo" if name == "sum" else name)  # version 0.1: --combine sum
    return config, rest


def with_objective(config: TrainConfig, name: str) -> TrainConfig:
    """Return the config with another objective; options that both objectives have keep their values.

    Raises:
        UserError: the objective does not exist.
    """
    kind = find_objective(name)
    if name == name_of(config.objective):
        return config
    if not dataclasses.is_dataclass(kind):
        raise UserError(f"objective: {name} is not a dataclass; decorate it with @dataclass(frozen=True, kw_only=True)")
    assert dataclasses.is_dataclass(config.objective)
    # Another objective may mean something else by the same name.
    recipe = {(field.name, field.type): field.name for field in dataclasses.fields(config.objective)}
    both = [field.name for field in dataclasses.fields(kind) if (field.name, field.type) in recipe]
    shared = {name: getattr(config.objective, name) for name in both}
    return dataclasses.replace(config, objective=kind(**shared))
