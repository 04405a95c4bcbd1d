"""Bad input is one line; a bug shows its traceback."""

import subprocess
import sys

import pytest
from command import environment

from sfumato.errors import UserError

PLANTED = "import sfumato.cli as cli; cli.parse = lambda arguments: {body}; raise SystemExit(cli.main([]))"


def run(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`sfumato` whose parser is this expression."""
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
    [("steps: 0 is too small", "steps"), ("loss.clip: 2", "loss.clip"), ("reward 'clip' failed", "reward"), ("", "")],
)
def test_the_field_of_an_error(message: str, field: str):
    assert UserError(message).field == field
    assert isinstance(UserError(message), ValueError)
