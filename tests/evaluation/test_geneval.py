"""GenEval's rules on constructed scenes with known answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sfumato.cli import main
from sfumato.evaluation.detector import OBJECTS, Detector, cut_out, find_objects, prepare
from sfumato.evaluation.geneval import Detection, is_correct, keep, relative_position, summary
from sfumato.evaluation.images import write_image
from sfumato.evaluation.measurement import read_measurement
from sfumato.evaluation.suites.geneval import figures


def at(x: float, y: float, size: float = 10, score: float = 0.95) -> Detection:
    """An object by its centre."""
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def colours(*names: str):
    """Says that the objects have these colours, in order."""

    def classify(objects: Sequence[Detection], name: str) -> list[str]:
        return list(names[: len(objects)])

    return classify


NONE = colours()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (50, 0, {"right of"}),
        (-50, 0, {"left of"}),
        (0, 50, {"below"}),
        (0, -50, {"above"}),
        (50, 50, {"right of", "below"}),
        (-50, -50, {"left of", "above"}),
        (1, 1, set()),  # within a tenth of both sizes
        (2, 0, set()),
        (4, 0, set()),  # half of the distance is exactly not enough
        (4.1, 0, {"right of"}),
        (50, 20, {"right of"}),
    ],
)
def test_positions(x: float, y: float, expected: set[str]):
    assert relative_position(at(x, y).box, at(0, 0).box) == expected


def test_what_counts():
    objects = {"dog": [at(0, 0, score=0.5), at(1, 0, score=0.95), at(2, 0, score=0.3)], "cat": [at(0, 0, score=0.2)]}
    assert {name: [o.score for o in found] for name, found in keep(objects, "two_object").items()} == {
        "dog": [0.95, 0.5]
    }
    assert [o.score for o in keep(objects, "counting")["dog"]] == [0.95]
    assert len(keep({"dog": [at(0, 0)] * 20}, "single_object")["dog"]) == 16


def test_counting():
    metadata = {"include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}]}
    for count, expected in ((2, False), (3, True), (4, False)):
        assert is_correct({"clock": [at(0, 0)] * count}, metadata, NONE) is expected


def test_two_objects():
    metadata = {"include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}]}
    assert is_correct({"bench": [at(0, 0)], "cow": [at(9, 9)] * 2}, metadata, NONE)
    assert not is_correct({"bench": [at(0, 0)]}, metadata, NONE)
    assert not is_correct({}, metadata, NONE)


def test_colours():
    metadata = {"include": [{"class": "car", "count": 1, "color": "red"}]}
    assert is_correct({"car": [at(0, 0)]}, metadata, colours("red"))
    assert not is_correct({"car": [at(0, 0)]}, metadata, colours("blue"))
    # The surest object decides.
    assert not is_correct({"car": [at(0, 0), at(9, 9)]}, metadata, colours("blue", "red"))
    both = {"include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "car", "count": 1, "color": "blue"}]}
    by_class = {"cup": "red", "car": "blue"}
    assert is_correct({"cup": [at(0, 0)], "car": [at(9, 0)]}, both, lambda objects, name: [by_class[name]])
    assert not is_correct({"cup": [at(0, 0)], "car": [at(9, 0)]}, both, lambda objects, name: ["red"])


def test_position_of_two_objects():
    metadata = {"include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}]}
    assert is_correct({"dog": [at(0, 0)], "tie": [at(50, 0)]}, metadata, NONE)
    assert not is_correct({"dog": [at(50, 0)], "tie": [at(0, 0)]}, metadata, NONE)
    assert not is_correct({"tie": [at(50, 0)]}, metadata, NONE)  # no dog to be right of


def test_summary():
    tags = ["counting", "colors", "counting", "counting", "colors"]
    correct = [True, True, False, True, False]
    # The tasks count alike, whatever their images.
    assert summary(tags, correct) == pytest.approx({"counting": 2 / 3, "colors": 1 / 2, "overall": 7 / 12})


def test_objects_from_the_detectors_answers():
    """Two queries: a dog for sure on four pixels, and a tie with half a mind on one; a third says "nothing"."""
    logits = torch.full((3, 81), -20.0)
    logits[0, OBJECTS.index("dog")] = 20
    logits[1, OBJECTS.index("tie")] = logits[1, 80] = 20
    logits[2, 80] = 20
    masks = torch.full((3, 4, 6), -9.0)
    masks[0, 1:3, 2:4] = 20
    masks[1, 3, 5] = 0.5
    found = {name: [o for o in objects if o.score > 0.01] for name, objects in find_objects(logits, masks).items()}
    (dog,), (tie,) = found["dog"], found["tie"]
    assert dog.box == (2, 1, 4, 3)
    assert dog.score == pytest.approx(1, abs=1e-6)
    assert tie.box == (5, 3, 6, 4)
    assert tie.score == pytest.approx(0.5 * torch.tensor(0.5).sigmoid().item(), abs=1e-6)
    assert sum(len(objects) for objects in found.values()) == 2
    image = torch.rand(3, 4, 6)
    assert torch.equal(cut_out(image, dog), image[:, 1:3, 2:4])
    assert dog.mask is not None
    dog.mask[1, 2] = False
    assert (cut_out(image, dog)[:, 0, 0] == 0x99 / 255).all()


def test_images_of_the_detector():
    pixels, size = prepare(torch.rand(1, 3, 256, 256))
    assert pixels.shape[2:] == size == (800, 800)
    pixels, size = prepare(torch.rand(1, 3, 100, 300))
    assert size == (444, 1333)
    assert pixels.shape[2:] == (448, 1344)
    assert (pixels[:, :, 444:] == 0).all()


def test_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Images of plain colours: where one is bright the detector sees a dog, and its colour is the brighter channel."""

    class Seer(Detector):
        def __init__(self):
            pass

        def detect(self, image: torch.Tensor) -> dict[str, list[Detection]]:
            return {"dog": [at(0, 0)]} if image.max() > 0.5 else {}

        def colours(self, image: torch.Tensor, objects: Sequence[Detection], name: str) -> list[str]:
            return ["red" if image[0].mean() > image[2].mean() else "blue"] * len(objects)

    monkeypatch.setattr("sfumato.evaluation.suites.geneval.load_detector", lambda *arguments: Seer())
    prompts = [
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
        {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    for number, rgb in enumerate([(1, 0, 0), (0, 0, 0), (1, 0, 0), (0, 0, 1)]):
        image = torch.tensor(rgb).float()[:, None, None].expand(3, 4, 4)
        write_image(tmp_path / f"images/{number // 2:05d}/samples/{number % 2:04d}.png", image)
    command = ["evaluate", str(tmp_path / "images"), "--suite", "geneval", "--prompts", str(tmp_path / "prompts.jsonl")]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    assert "has 4 images, not 4 of each of 2 prompts" in capsys.readouterr().err
    command[-3] = str(tmp_path / "two")
    assert main([*command, "--per-prompt", "2"]) == 0
    found = read_measurement(tmp_path / "two/images/measurement.json")
    assert {name: figure.value for name, figure in found.items()} == {
        "single_object": 0.5,
        "colors": 0.5,
        "overall": 0.5,
    }
    lines = [json.loads(line) for line in (tmp_path / "two/images/geneval.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True, False, True, False]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({**prompts[0], "include": [{"class": "unicorn", "count": 1}]}))
    command[-3] = str(tmp_path / "three")
    assert main(command) == 2
    assert "asks for 'unicorn', no class of COCO" in capsys.readouterr().err


def test_overall_counts_tasks_alike():
    found = figures(["a", "a", "a", "b"], [True, True, False, False])
    assert found["overall"].value == pytest.approx(1 / 3)
    parts = found["overall"].parts
    assert sum(parts) / len(parts) == pytest.approx(1 / 3)
