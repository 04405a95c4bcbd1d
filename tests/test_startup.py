"""Help and errors for typos do not import torch. The test counts imports instead of measuring time."""

import subprocess
import sys

import pytest
from command import environment

PROBE = """
import sys
from sfumato.cli.main import main
status = main({arguments!r})
names = {{"torch", "numpy", "matplotlib", "safetensors", "PIL", "huggingface_hub", "jaxtyping"}}
heavy = sorted(names & set(sys.modules))
print("status", status, "heavy", heavy, "modules", len(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["train"], 0),
        (["pretrain", "--help"], 0),
        (["reproduce", "--help"], 0),
        (["trian", "emoji-dark"], 2),
        (["train", "emoji-drak"], 2),
        (["pretrain", "emoji-vra"], 2),
        (["reproduce", "var-lk"], 2),
    ],
)
def test_light(arguments: list[str], status: int):
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=arguments)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    report = result.stderr.splitlines()[-1].split()
    assert report[:4] == ["status", str(status), "heavy", "[]"], result.stderr
    # About 560 with rich's tables; torch alone adds 900.
    assert int(report[-1]) < 800


def test_a_terminal_without_umlauts():
    """What it cannot show becomes a question mark; it must not end a run."""
    result = subprocess.run(
        [sys.executable, "-m", "sfumato", "train"],
        env={**environment(), "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, "S?sstrunk" in result.stdout) == (0, True), result.stderr
