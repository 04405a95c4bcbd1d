"""`sfumato score` with captions from a file, and with images that cannot be read."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli.main import main


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Create two pictures of different sizes in two folders."""
    for name, size in (("ant", (8, 8)), ("bee", (6, 4))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "picture.png")
    return tmp_path


@pytest.fixture
def telling(pictures: Path) -> str:
    """A reward that shows what it is told: the length of the caption, and the number in the metadata."""
    (pictures / "r.py").write_text(
        "import torch\n"
        "def told(images, words):\n"
        "    sizes = [len(c) + 100 * int(d.get('n', 0)) for c, d in zip(words.captions, words.metadata)]\n"
        "    return torch.tensor(sizes, dtype=torch.float32)\n"
    )
    return f"{pictures}/r.py:told"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "c.jsonl",
            '{"file_name": "bee/picture.png", "text": "a bee", "n": 1}\n{"image": "ant/picture.png", "text": "a"}',
        ),
        ("c.csv", "File,Prompt,n\nbee/picture.png,a bee,1\nother.png,no image,0\nant/picture.png,a,0\n"),
        ("c.jsonl", '{"text": "a"}\n{"text": "a bee", "n": 1}'),
    ],
)
def test_captions_from_a_file(
    pictures: Path, telling: str, capsys: pytest.CaptureFixture[str], file: str, content: str
):
    (pictures / file).write_text(content)
    command = ["score", str(pictures), "--reward", telling, "--json", "--prompts", str(pictures / file)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert [row["score"] for row in json.loads(printed.out)] == [1.0, 105.0]
    assert ("1 of 3 captions" in printed.err) == ("other.png" in content)


def test_captions_by_order_and_by_name_alone(pictures: Path, telling: str, capsys: pytest.CaptureFixture[str]):
    """A caption stays with its image if an image between them cannot be read."""
    Image.new("RGB", (8, 8)).save(pictures / "bee/10.png")
    (pictures / "ant/zero.png").touch()
    (pictures / "c.txt").write_text("1\n22\n333\n4444\n")
    (pictures / "c.jsonl").write_text(
        "".join(
            json.dumps({"file_name": name, "text": "x" * size}) + "\n"
            for size, name in enumerate(("ant/picture.png", "zero.png", "10.png", "bee/picture.png"), start=1)
        )
    )
    for name in ("c.txt", "c.jsonl"):
        assert main(["score", telling, str(pictures), "--json", "--prompts", str(pictures / name)]) == 0
        printed = capsys.readouterr()
        assert {Path(row["image"]).name: row["score"] for row in json.loads(printed.out)}["10.png"] == 3
        assert [row["score"] for row in json.loads(printed.out)] == [1.0, 3.0, 4.0]
        assert "3 images; left out: 1 files that cannot be read as images" in printed.err
        assert "zero.png" in printed.err


def test_a_line_for_each_image(pictures: Path, capsys: pytest.CaptureFixture[str]):
    folder = pictures / ("long" * 20) / ("name" * 20)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(os.fsencode(folder) + b"/\xe4.png")
    assert main(["score", "brightness", str(pictures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].split() == [f"{folder}/\\udce4.png", "0.0000"]


CAPTIONS = {
    "three": (None, None, None),
    "ant": ("ant/picture.png", "x.png"),
    "alike": ("picture.png",),
    "twice": ("ant/picture.png", "ant/picture.png"),
    "mixed": ("ant/picture.png", None),
}
"""Images that the lines of a file name."""


@pytest.mark.parametrize(
    ("file", "field", "pieces"),
    [
        ("none", "prompts", ("none.jsonl", "is not a file")),
        ("three", "prompts", ("3 captions", "2 images")),
        ("ant", "prompts", ("1 of 2 images", "bee/picture.png", "x.png is missing or cannot be read as an image")),
        ("alike", "prompts", ("picture.png", "2 images")),
        ("twice", "prompts", ("two captions", "ant/picture.png")),
        ("mixed", "prompts", ("caption 2", "file_name")),
    ],
)
def test_captions_that_do_not_fit(
    pictures: Path, capsys: pytest.CaptureFixture[str], file: str, field: str, pieces: tuple[str, ...]
):
    lines = [json.dumps({"text": "a"} | ({"file_name": image} if image else {})) for image in CAPTIONS.get(file, ())]
    if lines:
        (pictures / f"{file}.jsonl").write_text("\n".join(lines))
    refused(capsys, ["score", "bright", str(pictures), "--prompts", f"{pictures}/{file}.jsonl"], field, pieces)


def test_captions_twice(pictures: Path, capsys: pytest.CaptureFixture[str]):
    command = ["score", "bright", str(pictures), "--prompts", "x.txt", "--caption", "a cat"]
    refused(capsys, command, "caption", ("'a cat'", "--prompts"))


def test_no_image_can_be_read(pictures: Path, capsys: pytest.CaptureFixture[str]):
    (pictures / "broken").mkdir()
    (pictures / "broken/a.png").touch()
    refused(capsys, ["score", "bright", f"{pictures}/broken"], "images", ("none of 1", "broken/a.png"))


def refused(capsys: pytest.CaptureFixture[str], command: list[str], field: str, pieces: tuple[str, ...]) -> None:
    """Check that a command fails with one line for this field, with these pieces in it."""
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sfumato: {field}: ")
    assert error.count("\n") == 1
    assert all(piece in error for piece in pieces), error
