"""Bad inputs by the hundred: each is refused with exit status 2 and one line that names what is wrong, before anything
is written.

Each table `NAME.yaml` has groups of rows. A group's `command` begins the command line; a row continues it, and has the
beginning of the message and other pieces of it. A group whose commands may write files names them in `writes`. {name}
stands for an input that `made_inputs` makes: {new} is a path at which
nothing exists, and {cwd} is the folder in which the commands run.
"""

import os
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jaxtyping
import pytest
import yaml
from bad_inputs.made_inputs import make_inputs

from sfumato.cli.main import main


@dataclass(frozen=True)
class Row:
    """A command line that must be refused."""

    command: str
    beginning: str
    """beginning of the message, after "sfumato: " """
    pieces: Sequence[str]
    """other parts of the message"""
    writes: Sequence[str] = ()
    """names of files that the command may write"""


def rows() -> Iterator[Row]:
    """Yield the rows of all tables."""
    for table in sorted(Path(__file__).parent.glob("*.yaml")):
        for group in yaml.safe_load(table.read_text("utf-8")):
            for rest, beginning, *pieces in group["rows"]:
                yield Row(f"{group['command']} {rest}".strip(), beginning, pieces, group.get("writes", ()))


ROWS = {row.command: row for row in rows()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the paths of all inputs by name, and the number of a port that is in use."""
    root = tmp_path_factory.mktemp("inputs")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        yield {**make_inputs(root), "port": str(busy.getsockname()[1])}


@pytest.fixture(autouse=True)
def as_a_user(inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run commands in an empty folder, with a home of their own and without the type checker, which would be first to
    notice some inputs."""
    monkeypatch.chdir(inputs["cwd"])
    monkeypatch.setenv("HOME", inputs["home"])
    monkeypatch.delenv("SFUMATO_REWARD_TOKEN", raising=False)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def content_of(root: Path, without: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder, without those of certain names; of a folder, only that it
    exists."""
    content = {}
    for folder, _, files in os.walk(root):
        content[folder] = (0, 0)
        for name in set(files).difference(without):
            state = os.stat(path := os.path.join(folder, name))
            content[path] = (state.st_size, state.st_mtime_ns)
    return content


def filled(text: str, inputs: dict[str, str]) -> str:
    """Return a text with the inputs that it names in braces."""
    return re.sub(r"\{([^{}]+)\}", lambda name: inputs[name[1]], text)


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(name: str, inputs: dict[str, str], capfd: pytest.CaptureFixture[str]):
    row, root = ROWS[name], Path(inputs["root"])
    before = content_of(root, row.writes)
    assert main([filled(part, inputs) for part in shlex.split(row.command)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"sfumato: {filled(row.beginning, inputs)}"), lines[0]
    for piece in row.pieces:
        assert filled(piece, inputs) in lines[0]
    assert content_of(root, row.writes) == before  # also: no function of a pickle was called


def test_there_are_hundreds_of_rows():
    assert len(ROWS) == len(list(rows())) >= 300
