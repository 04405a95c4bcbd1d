"""The folder of a run, and the settings that the run was started with."""

import json
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.files import claim_folder, write_text
from sfumato.training.hooks.checkpoints import checkpoints_in
from sfumato.training.train_config import TrainConfig, to_json, upgraded


def check_run_folder(path: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse to overwrite another run, or to resume with other settings.

    Raises:
        UserError: the folder belongs to another run, or a setting differs; the message says what to do.
    """
    saved = claim_folder("run_dir", path, "config.json", resume=resume)
    if saved is None:
        return
    check_same(saved, config)
    done = [int(checkpoint.name.removeprefix("step-")) for checkpoint in checkpoints_in(path / "checkpoints")]
    if done and config.steps < done[-1]:
        raise UserError(f"steps: {config.steps} is fewer than the {done[-1]} steps already done; give at least as many")


def check_same(saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse settings that differ from those that a run was started with.

    Raises:
        UserError: the message names the first setting that differs.
    """
    before, now = upgraded(saved), json.loads(json.dumps(to_json(config)))
    # Settings that are newer than the version that started the run are not compared.
    for name in sorted(now.keys() & before.keys() - {"steps", "device", "reward_device", "reward_timeout"}):
        was, asked = before[name], now[name]
        if isinstance(was, dict) and isinstance(asked, dict) and name != "reward":
            different = [key for key in sorted(was.keys() & asked.keys()) if was[key] != asked[key]]
            name, was, asked = (
                (f"{name}.{different[0]}", was[different[0]], asked[different[0]]) if different else (name, 0, 0)
            )
        if was != asked:
            raise UserError(
                f"{name}: {asked!r} differs from the run's {was!r}; resume with the settings in its config.json"
            )


def create_run_folder(path: Path, config: TrainConfig) -> None:
    """Create the folder and write the resolved config."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_text(path / "config.json", json.dumps(to_json(config), indent=1) + "\n")
