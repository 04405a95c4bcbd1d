"""GenEval's rules on constructed scenes with known answers."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from errors import bad_input
from PIL import Image
from tiny_transformers import save_clip, save_mask2former

from sfumato.cli.main import main
from sfumato.data.prompts import find_prompts, read_prompts
from sfumato.evaluation.image_sets import read_images, write_image
from sfumato.evaluation.measurement import read_measurement
from sfumato.evaluation.suites.geneval import check, figures, shows
from sfumato.rewards.backbone import Clip
from sfumato.rewards.detector import OBJECTS, Detector, cut_out, find_objects, load_detector, prepare
from sfumato.rewards.geneval_scoring import COLORS, Detection, is_correct, keep, relative_position, summary


def at(x: float, y: float, size: float = 10, score: float = 0.95) -> Detection:
    """Return an object with this center."""
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def colors(*names: str):
    """Return a classifier that reports these colors for the objects, in order."""

    def classify(objects: Sequence[Detection], name: str) -> list[str]:
        return list(names[: len(objects)])

    return classify


NONE = colors()


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
        (4, 0, set()),  # exactly half of the distance is not enough
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
    assert is_correct({"car": [at(0, 0)]}, metadata, colors("red"))
    assert not is_correct({"car": [at(0, 0)]}, metadata, colors("blue"))
    # The most confident object decides.
    assert not is_correct({"car": [at(0, 0), at(9, 9)]}, metadata, colors("blue", "red"))
    both = {"include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "car", "count": 1, "color": "blue"}]}
    by_class = {"cup": "red", "car": "blue"}
    assert is_correct({"cup": [at(0, 0)], "car": [at(9, 0)]}, both, lambda objects, name: [by_class[name]])
    assert not is_correct({"cup": [at(0, 0)], "car": [at(9, 0)]}, both, lambda objects, name: ["red"])


def test_position_of_two_objects():
    metadata = {"include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}]}
    assert is_correct({"dog": [at(0, 0)], "tie": [at(50, 0)]}, metadata, NONE)
    assert not is_correct({"dog": [at(50, 0)], "tie": [at(0, 0)]}, metadata, NONE)
    assert not is_correct({"tie": [at(50, 0)]}, metadata, NONE)  # there is no dog for the tie to be right of


def test_summary():
    tags = ["counting", "colors", "counting", "counting", "colors"]
    correct = [True, True, False, True, False]
    # Tasks have equal weights, whatever the number of their images.
    assert summary(tags, correct) == pytest.approx({"counting": 2 / 3, "colors": 1 / 2, "overall": 7 / 12})


def test_objects_from_the_detectors_answers():
    """One query reports a certain dog on four pixels, one an uncertain tie on one pixel, and a third no object."""
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


def test_published_prompts():
    prompts = read_prompts(find_prompts("geneval"))
    for prompt in prompts:
        check(prompt)
    assert Counter(prompt.metadata["tag"] for prompt in prompts) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert {prompt.metadata["include"][0]["class"] for prompt in prompts[:80]} == set(OBJECTS)  # pyright: ignore
    assert prompts[0].caption == "a photo of a bench"


class Palette(Clip):
    """A CLIP stand-in that sees the mean color of a picture relative to gray, and knows the names of some colors."""

    NAMED: ClassVar = {"red": (1, -1, -1), "blue": (-1, -1, 1), "purple": (1, -1, 1)}

    def __init__(self):
        self.pictures: list[torch.Tensor] = []
        self.captions: list[str] = []

    def image_embeddings(self, images: torch.Tensor) -> torch.Tensor:
        self.pictures.append(images)
        return F.normalize((images - 0x99 / 255).mean((2, 3)), dim=1)

    def text_embeddings(self, captions: Sequence[str], device: torch.device) -> torch.Tensor:
        self.captions = list(captions)
        named = [next((rgb for name, rgb in self.NAMED.items() if name in c), (0, 0, 0)) for c in captions]
        return F.normalize(torch.tensor(named).float(), dim=1)


def test_colour_is_that_of_the_object_alone():
    """A red diagonal on blue: without the mask, the content of the box would be purple."""
    image = torch.zeros(3, 8, 8)
    mask = torch.eye(8, dtype=torch.bool)
    image[0], image[2] = mask.float(), (~mask).float()
    box = (0.0, 0.0, 8.0, 8.0)
    palette = Palette()
    detector = Detector(None, palette, torch.device("cpu"))
    found = [Detection(box, 0.9, mask), Detection(box, 0.8, ~mask), Detection(box, 0.7)]
    assert detector.colors(image, found, "car") == ["red", "blue", "blue"]
    image[0], image[2] = 1, (~mask).float()  # now red on magenta
    assert detector.colors(image, found[:2], "car") == ["red", "purple"]
    assert palette.captions[:3] == ["a photo of a red car", "a photo of a red-colored car", "a photo of a red object"]
    assert len(palette.captions) == 3 * len(COLORS) == 30
    for color, expected in (("red", True), ("blue", False)):
        metadata = {"include": [{"class": "car", "count": 1, "color": color}]}
        assert is_correct({"car": found[:1]}, metadata, lambda o, name: detector.colors(image, o, name)) is expected


def test_cut_out_as_pillow_does():
    """As in GenEval's own code: the image composited over #999 with the mask, and cropped to the rounded box."""
    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), rng.random((9, 12)) < 0.5
    box = (1.6, 2.4, 10.5, 7.5)
    picture = Image.fromarray(pixels)
    blank = Image.new("RGB", picture.size, color="#999")
    expected = np.array(Image.composite(picture, blank, Image.fromarray(mask)).crop(box))
    ours = cut_out(torch.from_numpy(pixels).permute(2, 0, 1) / 255, Detection(box, 1.0, torch.from_numpy(mask)))
    assert np.array_equal((ours * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random Mask2Former and a random CLIP, saved in the format of the released ones."""
    pytest.importorskip("transformers")
    return save_mask2former(tmp_path_factory.mktemp("detector")), save_clip(tmp_path_factory.mktemp("clip"))


def test_detector_as_transformers_does(released: tuple[Path, Path]):
    """Preprocessing of images and confidences, compared with transformers' own processor."""
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    processor = Mask2FormerImageProcessorPil(size_divisor=0)  # it would stretch to multiples of 32 instead of padding
    pixels = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = processor(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    ours, (tall, wide) = prepare(pixels[None] / 255)
    assert ours.shape == (1, 3, 800, 1216)
    assert theirs.shape == (1, 3, tall, wide) == (1, 3, 800, 1200)
    # The processor rounds to 8 bits after each axis: one level, divided by the standard deviation.
    torch.testing.assert_close(ours[..., :tall, :wide], theirs, rtol=0, atol=1.01 / 255 / 0.224)
    model = load_detector(str(released[0]), str(released[1]), torch.device("cpu")).model
    with torch.no_grad():
        out = model(pixel_values=ours[..., :160, :160])
    (expected,) = processor.post_process_instance_segmentation(out, threshold=0.0)
    masks = F.interpolate(out.masks_queries_logits, (384, 384), mode="bilinear")[0]  # as the processor does first
    found = [
        (OBJECTS.index(name), o.score)
        for name, each in find_objects(out.class_queries_logits[0], masks).items()
        for o in each
    ]
    for segment in expected["segments_info"]:
        scores = [score for label, score in found if label == segment["label_id"]]
        assert min(abs(score - segment["score"]) for score in scores) < 1e-5
    assert len(expected["segments_info"]) == 6


def test_the_suite_with_its_networks(
    released: tuple[Path, Path], text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From captions to scores, with the same classes that load the released networks."""
    monkeypatch.setattr("sfumato.rewards.detector.SHORT", 96)  # the published side takes seconds per image
    monkeypatch.setattr("sfumato.rewards.geneval_scoring.THRESHOLD", 0.01)
    monkeypatch.setattr("sfumato.rewards.geneval_scoring.COUNTING_THRESHOLD", 0.01)
    detector, clip = map(str, released)
    prompts = [read_prompts(find_prompts("geneval"))[n] for n in (2, 200, 300, 400, 500)]
    lines = [{**prompt.metadata, "prompt": prompt.caption} for prompt in prompts]
    include = [{"class": "bicycle", "count": 1, "color": "white"}]
    lines.append({"tag": "colors", "include": include, "prompt": "a photo of a white bicycle"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--suite", "geneval", "--prompts", str(tmp_path / "prompts.jsonl"), "--per-prompt", "2"]
    options += ["--detector", detector, "--clip", clip, "--device", "cpu", "--batch-size", "5"]
    assert main(["evaluate", str(text_model), *options, "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / text_model.name
    said = [json.loads(line) for line in (folder / "geneval.jsonl").read_text().splitlines()]
    assert len(said) == 12
    seer = load_detector(detector, clip, torch.device("cpu"))
    for number, line in enumerate(said):
        assert line["image"] == f"{number // 2:05d}/samples/{number % 2:04d}.png"
        (image,) = read_images([folder / "images" / line["image"]])
        assert line["correct"] is shows(seer, image, lines[number // 2])
    assert len({line["correct"] for line in said}) == 2  # the tiny networks detect something
    for number, line in enumerate(lines):
        assert json.loads((folder / f"images/{number:05d}/metadata.jsonl").read_text()) == line
    found = read_measurement(folder / "measurement.json")
    assert list(found) == ["single_object", "counting", "colors", "position", "color_attr", "overall"]
    # The folder itself is a target, whatever else GenEval's own code wrote there.
    write_image(folder / "images/00000/grid.png", torch.zeros(3, 9, 9))
    assert main(["evaluate", str(folder / "images"), *options, "--out", str(tmp_path / "again")]) == 0
    assert read_measurement(tmp_path / "again/images/measurement.json") == found


def test_samples_of_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(
        "sfumato.evaluation.suites.geneval.load_detector",
        lambda *arguments: Detector(None, Palette(), torch.device("cpu")),
    )
    write_image(tmp_path / "images/00000/samples/0000.png", torch.zeros(3, 4, 4))
    (tmp_path / "images/00000/metadata.jsonl").write_text('{"prompt": "a photo of a zebra"}')
    command = ["evaluate", str(tmp_path / "images"), "--suite", "geneval", "--device", "cpu"]
    assert main(command) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("sfumato: target: ")
    for piece in ("00000 ", "'a photo of a zebra'", "'a photo of a bench'", "--prompts"):
        assert piece in complaint


@pytest.mark.parametrize(
    ("changed", "pieces"),
    [
        ({"include": None}, ["include"]),
        ({"include": [{"class": "unicorn", "count": 1}]}, ["'unicorn'"]),
        ({"include": [{"class": "dog"}]}, ["None", "'dog'"]),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, ["'mauve'", "red"]),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, ["'above'", "0"]),
        ({"tag": None, "include": []}, ["tag"]),
    ],
)
def test_wrong_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict, pieces: list[str]):
    line = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog", **changed}
    (tmp_path / "prompts.jsonl").write_text(json.dumps({k: v for k, v in line.items() if k != "tag" or v}))
    command = ["evaluate", "emoji-infinity", "--suite", "geneval", "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main([*command, "--device", "cpu"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("sfumato: prompts: ")
    assert all(piece in complaint for piece in ["'a photo of a dog'", *pieces]), complaint


def test_without_scipy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with bad_input("scipy", "pip install 'sfumato[geneval]'"):
        load_detector("nothing", "nothing", torch.device("cpu"))


def test_detector_of_other_classes(tmp_path: Path):
    pytest.importorskip("transformers")
    save_mask2former(tmp_path / "seven", classes=7)
    with bad_input("detector", "seven ", " 7 ", " 80"):
        load_detector(str(tmp_path / "seven"), "nothing", torch.device("cpu"))


def test_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Images of one color: the detector sees a dog if the image is bright, with the color of the brighter channel."""

    class Seer(Detector):
        def __init__(self):
            pass

        def detect(self, image: torch.Tensor) -> dict[str, list[Detection]]:
            return {"dog": [at(0, 0)]} if image.max() > 0.5 else {}

        def colors(self, image: torch.Tensor, objects: Sequence[Detection], name: str) -> list[str]:
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
    complaint = capsys.readouterr().err
    assert complaint.startswith("sfumato: target: ")
    for piece in ("images/00000 ", " 2 ", " 4", "--per-prompt"):
        assert piece in complaint
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
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("sfumato: prompts: ")
    assert "'unicorn'" in complaint


def test_overall_counts_tasks_alike():
    found = figures(["a", "a", "a", "b"], [True, True, False, False])
    assert found["overall"].value == pytest.approx(1 / 3)
    parts = found["overall"].parts
    assert sum(parts) / len(parts) == pytest.approx(1 / 3)
