"""Commands that list rewards, score images and serve a reward."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from local_server import serving
from PIL import Image
from safetensors.torch import load

from sfumato.cli.main import main, with_home
from sfumato.rewards import COMPOSITIONS, REWARDS


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Create two pictures of different sizes, in folders named after their content."""
    for name, color, size in (("ant", (255, 255, 255), (8, 8)), ("bee", (0, 0, 0), (6, 4))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size, color).save(tmp_path / name / "picture.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_reward_is_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["rewards"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line.rstrip() for line in text.splitlines() if line.strip()}
    assert set(REWARDS) <= set(lines)
    assert lines["brightness"].split() == ["brightness", "0", "to", "1", "any", "device", "ready"]
    assert lines["ocr"].split()[-2:] in (["CPU", "ready"], ["install", "'sfumato[ocr]'"])
    assert lines["deqa"].endswith("when its server runs")
    assert "ready for emoji; pip install 'sfumato[torchvision]'" in lines["classifier"] or find_spec("torchvision")
    assert all(f"  {name}: " in text for name in COMPOSITIONS)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]):
    with serving(lambda body: (200, b"")) as server:
        port = server.address.rpartition(":")[2]
        assert main(["serve", "brightness", "--port", port]) == 2
    assert capsys.readouterr().err == (
        f"sfumato: port: {port} of 127.0.0.1 cannot be used (Address already in use); choose another --port\n"
    )


def test_one_reward_is_tried(capsys: pytest.CaptureFixture[str]):
    assert main(["rewards", "brightness?scale=2"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(r" brightness\?scale=2 +\d+\.\d\d s +0 to 2 *", line)


def test_servers_are_tried_one_by_one(capsys: pytest.CaptureFixture[str]):
    """Each says what it serves, and scores eight images; one that is away, or is something else, is an error."""

    def answer(body: bytes) -> tuple[int, bytes]:
        if not body:
            return 200, b'{"reward": "clip", "status": "ready", "version": "1.2"}'
        return 200, json.dumps({"scores": load(body)["labels"].tolist()}).encode()

    with serving(answer) as server, serving(lambda body: (200, b"<html>It works!</html>")) as other:
        names = [server.address, other.address, "http://127.0.0.1:9"]
        assert main(["rewards", server.address]) == 0
        row = rf" {server.address} +clip +1\.2 +\d+\.\d\d s +-1 to -1 *"
        assert re.fullmatch(row, capsys.readouterr().out.splitlines()[1])
        assert main(["rewards", f"{','.join(names)}?retries=40"]) == 2
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["reward", server.address]
    assert printed.err.splitlines() == [
        f"sfumato: {other.address}/health is not a server of sfumato serve; "
        "for one of Flow-GRPO, add protocol=flow-grpo",
        "sfumato: http://127.0.0.1:9/health does not answer (Connection refused); is the server running?",
    ]


def test_home_in_arguments(pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Quotes and = keep the shell from replacing ~."""
    monkeypatch.setenv("HOME", str(pictures))
    (pictures / "r.py").write_text("def f(images, words):\n    return images.mean((1, 2, 3))\n")
    assert main(["score", "~/r.py:f?scale=2", "~/ant", "--caption=~/x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"image": str(pictures / "ant/picture.png"), "score": 2.0}]
    assert [with_home(a) for a in ("--data=~/x", "~x", "a~/b", "--a", "~")] == [
        f"--data={pictures}/x", "~x", "a~/b", "--a", "~",
    ]  # fmt: skip


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HOME", "~")  # as for a user that the system does not know
    monkeypatch.chdir(tmp_path)
    assert main(["rewards", "brightness"]) == 0
    assert "this user has no home folder" in capsys.readouterr().err
    assert Path.home() == tmp_path


def test_scores_as_a_table_and_as_json(pictures: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["score", "brightness", str(pictures)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[-1] for row in rows] == ["1.0000", "0.0000"]
    assert main(["score", "brightness?scale=-1&offset=1", str(pictures / "bee/picture.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"image": str(pictures / "bee/picture.png"), "score": 1.0}]


def test_captions_and_labels(pictures: Path, capsys: pytest.CaptureFixture[str]):
    (pictures / "r.py").write_text(
        "import torch\n"
        "def length(images, words):\n"
        "    return torch.tensor([len(caption) for caption in words.captions]) + words.labels.cpu()\n"
    )
    for options, expected in (([], [2.0, 2.0]), (["--caption", "an insect", "--label", "100"], [109.0, 109.0])):
        assert main(["score", f"{pictures}/r.py:length", str(pictures), "--json", *options]) == 0
        assert [row["score"] for row in json.loads(capsys.readouterr().out)] == expected


def test_images_without_a_score(pictures: Path, capsys: pytest.CaptureFixture[str]):
    (pictures / "r.py").write_text(
        "import torch\n"
        "def bright_ones(images, words):\n"
        "    brightness = images.mean((1, 2, 3))\n"
        "    return torch.where(brightness > 0.5, brightness, torch.nan)\n"
        "bright_ones.last_failure = 'it is too dark'\n"
    )
    assert main(["score", f"{pictures}/r.py:bright_ones", str(pictures)]) == 0
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()[1:]] == ["1.0000", "none"]
    assert printed.err == "sfumato: 1 of 2 images have no score (it is too dark)\n"


@pytest.mark.parametrize(
    ("arguments", "field", "pieces"),
    [
        (["score", "brightness", "{folder}/none"], "images", ("{folder}/none",)),
        (["score", "brightness", "{folder}/notes.txt"], "images", ("{folder}/notes.txt",)),
        (
            ["score", "bright", "{folder}/empty"],
            "images",
            (".bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp", "{folder}/empty"),
        ),
        (["score", "brigthness", "{folder}"], "reward", ("'brigthness'", "brightness or")),
        (["serve", "brightness", "--host", "0.0.0.0"], "host", ("0.0.0.0", "SFUMATO_REWARD_TOKEN")),
        (["score", "brightness?levels=0,1", "{folder}"], "reward", ("brightness?levels=0,1", "thresholds")),
        (["serve", "brightness?levels=0,1", "--port", "0"], "reward", ("brightness?levels=0,1", "thresholds")),
        (["serve", "brightness", "--port", "99999"], "port", ("99999", "0-65535")),
        (["serve", "brightness", "--host", "::1", "--port", "-1"], "port", ("-1 of ::1", "0-65535")),
    ],
)
def test_errors(
    pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], field: str, pieces: tuple[str, ...]
):
    (pictures / "empty").mkdir()
    assert main([argument.format(folder=pictures) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sfumato: {field}: ")
    assert all(piece.format(folder=pictures) in error for piece in pieces)
    assert error.count("\n") == 1
    assert torch.is_grad_enabled()
