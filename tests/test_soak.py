"""The soak script, at a small size: it kills and resumes runs, and sends malformed requests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment

SCRIPT = Path(__file__).parents[1] / "benchmarks/soak.py"


def test_a_short_soak(tmp_path: Path):
    pytest.importorskip("uvicorn")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2", "--requests", "50"],
        env=environment() | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "| kills | 2 |" in result.stdout
    sent = [int(count) for count in re.findall(r"^\|[^|]+\| (\d+) \| .*× ", result.stdout, re.MULTILINE)]
    assert sum(sent) == 50
    assert not list(tmp_path.glob("sfumato-soak-*"))
