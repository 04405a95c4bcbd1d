"""Bad input prints one line; a bug prints its traceback."""

import subprocess
import sys

import pytest
from command import environment

from sfumato.errors import UserError

PLANTED = "import sfumato.cli.main as cli; cli.parse = lambda arguments: {body}; raise SystemExit(cli.main([]))"


def run(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `sfumato` with this expression as its parser."""
    return subprocess.run(
        [sys.executable, "-c", PLANTED.format(body=body)],
        env=environment() | variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_bug_shows_its_traceback():
    result = run("[a for a, b in [(1,)]]")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "not enough values to unpack" in result.stderr


@pytest.mark.parametrize("debug", ["", "0", "1"])
def test_bad_input_is_one_line_unless_debugging(debug: str):
    body = "(_ for _ in ()).throw(cli.UserError('steps: 0 is too small;\\n give more'))"
    result = run(body, SFUMATO_DEBUG=debug)
    if debug == "1":
        assert result.returncode == 1
        assert "Traceback" in result.stderr
    else:
        assert result.returncode == 2
        assert result.stderr == "sfumato: steps: 0 is too small; give more\n"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("steps: 0 is too small", "steps"),
        ("objective.clip: 2", "objective.clip"),
        ("reward 'clip' failed", "reward"),
        ("print-completion: unknown shell", "print-completion"),
        ("", ""),
    ],
)
def test_the_field_of_an_error(message: str, field: str):
    assert UserError(message).field == field
    assert isinstance(UserError(message), ValueError)
