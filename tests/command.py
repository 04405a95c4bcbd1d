"""Run the `sfumato` command in separate processes."""

import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """Return environment variables for one thread, no network, and no process group."""
    announced = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    inherited = {name: value for name, value in os.environ.items() if name not in announced}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_module(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` and wait until it ends."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
