"""`sfumato train RECIPE` and `sfumato train --resume RUN_DIR`."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sfumato.cli.doctor import tell_troubles
from sfumato.cli.listing import check_known
from sfumato.cli.options import parse_options, renamed, run_dir_of, take_option
from sfumato.errors import UserError
from sfumato.objectives import find_objective, name_of
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training.train_config import TrainConfig

RENAMED = {
    "labels-per-step": "groups-per-step",
    "loss.": "objective.",
    "combine": "objective",
}
"""New names of the options of version 0.1."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Align a generator with a reward. Every setting of the recipe is an option. --objective NAME chooses the training
    objective: grpo, gdpo, or path/to/file.py:Class."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run_dir: Path
    """folder for everything that the run writes"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue from the newest checkpoint in run_dir"""

    def __call__(self) -> int:
        from sfumato.training.train import train

        console = Console(markup=False)
        if not train(self.config, self.run_dir, resume=self.resume, console=console):
            return 130
        if int(os.environ.get("RANK", 0)) == 0:  # one of several processes speaks for all
            console.print(f"Look at {self.run_dir}/before_after.png and {self.run_dir}/curves.png", highlight=False)
            tell_troubles(console, self.run_dir)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse a recipe, or `--resume` and a run folder, and the options that change its settings."""
    if arguments[0].startswith("-"):
        return parse_resumption(arguments)
    recipe, *rest = arguments
    config, rest = config_of(recipe, rest)
    defaults = Train(config=config, run_dir=Path(run_dir_of(recipe)))
    return parse_options(Train, f"train {recipe}", rest, defaults)


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
    recipe = {field.name: getattr(config.objective, field.name) for field in dataclasses.fields(config.objective)}
    shared = {field.name: recipe[field.name] for field in dataclasses.fields(kind) if field.name in recipe}
    return dataclasses.replace(config, objective=kind(**shared))
