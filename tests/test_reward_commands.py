"""Commands that list rewards, score images and serve a reward."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli.main import main
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
        (["serve", "brightness?levels=0,1"], "reward", ("brightness?levels=0,1", "thresholds")),
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
