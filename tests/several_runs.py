"""Run several tiny runs in one start of the processes: several_runs.py OUT CASE..., each CASE as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from tiny import tiny_config

from sfumato.training.train import train


def run(out: Path, name: str, model: str, changes: dict[str, Any], *, resume: bool, local: int | None = None) -> None:
    """Train in OUT/NAME with a tiny config and these changes; `local` is the number of processes of a "machine"."""
    before = os.environ.get("LOCAL_WORLD_SIZE")
    if local is not None:
        os.environ["LOCAL_WORLD_SIZE"] = str(local)
    train(tiny_config(model, **changes), out / name, resume=resume, console=Console(quiet=True))
    if before is not None:
        os.environ["LOCAL_WORLD_SIZE"] = before


if __name__ == "__main__":
    for case in sys.argv[2:]:
        run(Path(sys.argv[1]), **json.loads(case))
