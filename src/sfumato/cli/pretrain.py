"""`sfumato pretrain RECIPE`."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options, renamed, run_dir_of
from sfumato.pretraining.pretrain_config import AnyPretrainConfig
from sfumato.recipes import PRETRAIN_RECIPES


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a model from scratch: a generator (first its tokenizer, then its network on the tokens), a classifier, or
    an image-text model."""

    data: Path
    """folder of images with one subfolder per class, or the unpacked npm package emoji-datasource-google"""
    config: Annotated[AnyPretrainConfig, tyro.conf.arg(name="")]
    run_dir: Path
    """folder for everything that the run writes; the trained model is in its subfolder model/"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue from the checkpoints in run_dir"""
    track: tuple[str, ...] = ()
    """trackers that get the metrics: wandb, swanlab, mlflow, tensorboard, or path/to/file.py:Class"""

    def __call__(self) -> int:
        from sfumato.interrupt import catch_interrupt
        from sfumato.pretraining.pretrain import pretrain
        from sfumato.pretraining.pretraining_view import PretrainingView
        from sfumato.pretraining.tracked import TrackedStages

        console, trackers = Console(markup=False), TrackedStages(self.track, self.run_dir, self.config)

        def report(stage: str, done: int, total: int, stats: dict[str, float]) -> None:
            view.show(stage, done, total, stats)
            trackers.log(stage, done, stats)

        with catch_interrupt() as interrupt, PretrainingView(console).open() as view, closing(trackers):
            finished = pretrain(
                self.config, self.data, self.run_dir, resume=self.resume, report=report, interrupt=interrupt
            )
        console.print(f"{'Done' if finished else 'Stopped, saved'}: {self.run_dir}", highlight=False)
        return 0 if finished else 130


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse a recipe and the options that change it."""
    recipe, *rest = arguments
    run_dir = Path(run_dir_of(f"pretrain-{recipe}"))
    defaults = Pretrain(config=PRETRAIN_RECIPES[recipe].build(), run_dir=run_dir, data=tyro.MISSING)
    return parse_options(Pretrain, f"pretrain {recipe}", renamed(rest, {"inference.": "settings."}), defaults)
