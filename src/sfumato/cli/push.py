"""`sfumato push RUN OWNER/NAME`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Push:
    """Write a model card for a run, and upload model and card to the Hugging Face Hub. The token is that of HF_TOKEN,
    or of `hf auth login`."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME on the hub; a new repository is created"""
    checkpoint: int | None = None
    """number of steps of the checkpoint to upload; the newest if not given"""
    evaluation: tuple[Path, ...] = ()
    """folders of `sfumato evaluate --out` whose tables the card shows"""
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """make a new repository private"""
    update: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace model and card of an existing repository"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """write the folder to --out instead of uploading it"""
    out: Path | None = None
    """folder for --dry-run; it must be empty"""

    def __call__(self) -> int:
        from sfumato.hub.push import find, push, write

        if self.dry_run != (self.out is not None):
            raise UserError("out: --dry-run and --out FOLDER belong together; give both, or neither")
        what = find(self.run, self.repository, self.checkpoint, self.evaluation)
        if self.out is not None:
            write(what, self.out)
            place = str(self.out)
        else:
            place = push(what, private=self.private, update=self.update)
        Console(markup=False).print(f"step {what.step}: {place}", highlight=False, soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato push`."""
    return parse_options(Push, "push", arguments)
