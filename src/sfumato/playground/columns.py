"""The models that are shown side by side: plain models, the base models of runs, and the checkpoints of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.evaluation.runner import label
from sfumato.families.library import holds_model
from sfumato.files import step_of
from sfumato.report.folders import read_config, read_object
from sfumato.training.hooks.checkpoints import checkpoints_in


@dataclass(frozen=True)
class Source:
    """Arguments of `load_generator`."""

    model: str
    weights: str | None = None
    tokenizer: str | None = None
    text_encoder: str | None = None


@dataclass(frozen=True)
class Column:
    """One column of the page."""

    name: str
    """name of the model, or of the run's folder"""
    checkpoints: Mapping[int, Source]
    """what draws after each number of steps, in order; 0 is the base of a run, or a model that is not a run"""

    @property
    def steps(self) -> list[int]:
        """The numbers of steps to choose from."""
        return list(self.checkpoints)

    def nearest(self, step: int) -> int:
        """Return the step with a checkpoint that is nearest to this one; of two, the earlier."""
        return min(self.checkpoints, key=lambda known: abs(known - step))


@dataclass(frozen=True)
class Run:
    """A run among the models."""

    folder: Path
    name: str
    """last parts of its path, as many as distinguish it from the others"""
    config: Mapping[str, Any]
    """its `config.json`"""

    @property
    def base(self) -> Source:
        """The model that the run started from."""
        files = (self.config.get(name) for name in ("weights", "tokenizer", "text_encoder"))
        return Source(self.config["model"], *files)

    def column(self) -> Column:
        """Return the column with the base as step 0 and all checkpoints.

        Raises:
            UserError: the run has no checkpoint.
        """
        encoder, found = self.base.text_encoder, checkpoints_in(self.folder / "checkpoints")
        if not found:
            raise UserError(f"models: {self.folder} has no complete checkpoint yet; wait for one, or leave it out")
        trained = {step_of(path): Source(str(path / "model"), text_encoder=encoder) for path in found}
        return Column(self.name, {0: self.base, **trained})


def find_models(names: Sequence[str]) -> list[Run | Column]:
    """Return the runs among the names of models, and a column for each of the others.

    Raises:
        UserError: no name is given, or one twice.
    """
    if not names:
        raise UserError("models: no model is given; give a run folder such as runs/emoji-dark, or emoji-var")
    return [
        Run(Path(name), short, read_config(Path(name))) if is_run(Path(name)) else Column(short, {0: Source(name)})
        for name, short in zip(names, label(names), strict=True)
    ]


def is_run(folder: Path) -> bool:
    """Return whether `sfumato train` wrote this folder."""
    file = folder / "config.json"
    return file.is_file() and not holds_model(folder) and isinstance(read_object(file).get("reward"), dict)


def columns_of(models: Sequence[Run | Column]) -> list[Column]:
    """Return the columns: the base models of the runs, each once, unless they are given; then the models as given.

    Raises:
        UserError: a run has no checkpoint.
    """
    given = {model.checkpoints[0] for model in models if isinstance(model, Column)}
    bases = dict.fromkeys(model.base for model in models if isinstance(model, Run))
    first = [Column(Path(base.model).name, {0: base}) for base in bases if base not in given]
    return first + [model.column() if isinstance(model, Run) else model for model in models]
