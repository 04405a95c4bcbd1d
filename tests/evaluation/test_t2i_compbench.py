"""T2I-CompBench: its rules by hand, its networks as stand-ins, and the suite end to end."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from errors import bad_input
from tiny_transformers import save_clip, save_owlv2

from sfumato.cli.main import main
from sfumato.evaluation.compbench_scoring import (
    attributes,
    complex_objects,
    position,
    questions_of,
    relation_of,
    simple_objects,
    spatial,
    without_adjectives,
)
from sfumato.evaluation.measurement import read_measurement
from sfumato.evaluation.noun_phrases import Parsed, load_parser
from sfumato.evaluation.suites.t2i_compbench import read_task
from sfumato.rewards.backbone import Clip
from sfumato.rewards.geneval_scoring import Detection
from sfumato.rewards.open_detector import OpenDetector, load_open_detector

TAGS = {
    **dict.fromkeys(("bench", "car", "giraffe", "lamp", "girl", "chair", "rug", "top", "ball"), "NOUN"),
    **dict.fromkeys(("red", "green", "black", "blue"), "ADJ"),
    **dict.fromkeys(("Paris", "Hilton"), "PROPN"),
}


def parsed(caption: str) -> Parsed:
    """A stand-in for spaCy: words by spaces, parts of speech from a list, and phrases that end with a noun."""
    words = caption.replace(".", " .").split()
    tags = [TAGS.get(word, "X") for word in words]
    phrases = [" ".join(words[max(0, n - 2) : n + 1]) for n, tag in enumerate(tags) if tag == "NOUN"]
    return Parsed(tuple(words), tuple(tags), tuple(phrases))


def test_attributes():
    assert questions_of(parsed("a green bench and a red car")) == ["a green bench?", "a red car?"]
    assert attributes([0.5, 0.8, 0.25]) == pytest.approx(0.1)
    assert attributes([]) == 1
    assert len(questions_of(Parsed((), (), ("a car",) * 9))) == 8


def test_objects_of_a_caption():
    assert simple_objects(parsed("a girl on side of a red car")) == ("person", "car")
    assert simple_objects(parsed("nothing")) is None
    # "top" belongs to what separates the objects.
    assert complex_objects(parsed("The black chair was on top of the blue rug.")) == ("chair", "rug")
    assert complex_objects(parsed("a lamp near Paris Hilton.")) == ("lamp", "Hilton")
    assert complex_objects(parsed("a lamp and a car")) is None
    assert complex_objects(parsed("a lamp near a car next to a rug")) is None
    assert without_adjectives(parsed("a red car near a blue lamp")) == "a car near a lamp"


def test_relations_of_a_caption():
    assert relation_of("a girl on the top of a car") == "on the top of"
    assert relation_of("a girl on side of a car near a lamp") == "on side of"
    assert relation_of("a girl with a lamp") is None


def box(x: float, y: float, size: float = 100) -> tuple[float, float, float, float]:
    """A square with this center."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


@pytest.mark.parametrize(
    ("relation", "x", "y", "expected"),
    [
        ("on the left of", 200, 0, 1),
        ("on the left of", -200, 0, 0),
        ("on the left of", 200, 200, 0),  # as far below as beside
        ("on the right of", -200, 50, 1),
        ("on the top of", 0, 200, 1),
        ("on the top of", 0, -200, 0),
        ("on the bottom of", 0, -200, 1),
        ("on the left of", 50, 0, 0.1 * 3),  # half of each square is common: 1/2 of 3/2
        ("on top of", 0, 200, 0),  # not in the authors' rule
        (None, 0, 200, 0),
        ("next to", 300, 100, 1),  # one of both distances is enough
        ("near", 300, 200, 0.5),
        ("on side of", -600, 300, 0.25),
    ],
)
def test_positions(relation: str | None, x: float, y: float, expected: float):
    """Where the second square lies, in pixels to the right of the first and below it."""
    assert position(relation, box(0, 0), box(x, y)) == pytest.approx(expected)


def test_spatial_relations():
    left, right = Detection(box(0, 0), 0.8), Detection(box(200, 0), 0.4)
    wanted = ("girl", "car")
    objects = {"girl": [left, right], "car": [right]}
    assert spatial("on the left of", wanted, objects) == pytest.approx(0.25 * 0.8 + 0.25 * 0.4 + 0.5)
    assert spatial("on the right of", wanted, objects) == 0  # 0.3 is less than 0.5
    assert spatial("on the left of", wanted, {"girl": [left]}) == 0
    assert spatial("on the left of", None, objects) == 0
    # Half of a square in common: 0.3 + 0.15 is less than 0.5; with sure objects it is 0.65.
    near = Detection(box(50, 0), 0.4)
    assert spatial("on the left of", wanted, {"girl": [left], "car": [near]}) == 0
    sure = {"girl": [Detection(box(0, 0), 1)], "car": [Detection(box(50, 0), 1)]}
    assert spatial("on the left of", wanted, sure) == pytest.approx(0.65)


def test_detector_of_named_objects(tmp_path: Path):
    """A random OWLv2: the boxes of a wide image are in its pixels, and the most confident object is the first."""
    pytest.importorskip("transformers")
    detector = load_open_detector(str(save_owlv2(tmp_path)), torch.device("cpu"))
    image = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0))
    found = detector.detect(image, ["car", "lamp"])
    with torch.no_grad():
        inputs = detector.processor(
            text=[["a photo of a car", "a photo of a lamp"]],
            images=[(image * 255).round().byte().permute(1, 2, 0).numpy()],
            return_tensors="pt",
        )
        out = detector.model(**inputs)
    logits, labels = out.logits[0].max(1)
    scores = logits.sigmoid()
    for label, name in enumerate(("car", "lamp")):
        rows = [n for n in scores.argsort(descending=True).tolist() if scores[n] > 0.2 and labels[n] == label]
        assert [o.score for o in found.get(name, [])] == pytest.approx(scores[rows].tolist(), abs=1e-5)
        for row, o in zip(rows, found.get(name, []), strict=True):
            x, y, width, height = (64 * out.pred_boxes[0, row]).tolist()  # shares of the padded square
            expected = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            assert o.box == pytest.approx(expected, abs=1e-3)
    assert sum(map(len, found.values())) > 0
    assert Detection((1, 2, 3, 4), 0.5).scaled(2) == Detection((2, 4, 6, 8), 0.5)


def write_prompts(folder: Path) -> Path:
    folder.mkdir()
    captions = {
        "color": ["a green bench and a red car"],
        "spatial": ["a giraffe on the left of a lamp"],
        "non_spatial": ["A girl has a ball"],
        "complex": ["The black chair is near the blue rug.", "a red ball.", "a green car near a lamp."],
        "complex_val_spatial": ["The black chair is near the blue rug."],
        "complex_val_action": ["a red ball."],
    }
    for name, lines in captions.items():
        (folder / (name if "_val" in name else f"{name}_val")).with_suffix(".txt").write_text("\n".join(lines))
    return folder


def test_parts_of_complex_captions(tmp_path: Path):
    found = read_task(write_prompts(tmp_path / "prompts"), "complex", 0, 1)
    assert [parts for _, parts in found] == [
        ("attributes", "spatial"),
        ("attributes", "clip"),
        ("attributes", "spatial", "clip"),
    ]
    with bad_input("prompts", "shape_val.txt", "https://github.com/Karine-Huang/T2I-CompBench"):
        read_task(tmp_path / "prompts", "shape", 0, 1)


class Seer(OpenDetector):
    """A stand-in for the detector: everything is there, each object 200 pixels to the right of the one before, in an
    image whose side is 479 pixels."""

    def __init__(self):
        pass

    def detect(self, image: torch.Tensor, names: Sequence[str]) -> dict[str, list[Detection]]:
        scale = image.shape[1] / 479
        return {name: [Detection(box(200 * n, 0), 0.5).scaled(scale)] for n, name in enumerate(names)}


class Reader(Clip):
    """A stand-in for CLIP: the number of words divided by 10."""

    def __init__(self):
        pass

    def cosines(self, images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([len(captions[0].split()) / 10])


def test_a_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    suite = "sfumato.evaluation.suites.t2i_compbench"
    monkeypatch.setattr(f"{suite}.load_parser", lambda: parsed)
    monkeypatch.setattr(f"{suite}.load_open_detector", lambda name, device: Seer())
    monkeypatch.setattr(f"{suite}.load_clip", lambda name: Reader())
    (tmp_path / "vqa.py").write_text(
        "def answer(image, questions):\n    return [0.5 if 'red' in question else 0.8 for question in questions]\n"
    )
    command = ["evaluate", "emoji-infinity", "--suite", "t2i-compbench"]
    command += [
        "--prompts",
        str(write_prompts(tmp_path / "p")),
        "--vqa",
        f"{tmp_path / 'vqa.py'}:answer",
        "--per-prompt",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "shape_val.txt" in capsys.readouterr().err
    tasks = ["--tasks", "color", "spatial", "non_spatial", "complex"]
    assert main([*command, *tasks, "--out", str(tmp_path / "out")]) == 0
    found = read_measurement(tmp_path / "out/emoji-infinity/measurement.json")
    assert list(found) == tasks[1:]
    assert found["color"].parts == pytest.approx((0.8 * 0.5,))
    assert found["spatial"].parts == pytest.approx((0.75,))  # 0.25 for the objects, 0.5 for their position
    assert found["non_spatial"].parts == pytest.approx((0.5,))
    # near: 0.75. Attributes: two phrases; one red; two phrases. CLIP: "a ball ." and "a car near a lamp ."
    assert found["complex"].parts == pytest.approx(
        ((0.64 + 0.75) / 2, (0.5 + 0.3) / 2, (0.64 + 0.75 + 0.6) / 3), abs=1e-6
    )
    lines = (tmp_path / "out/emoji-infinity/t2i-compbench.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"task": "spatial", "prompt": "a giraffe on the left of a lamp", "spatial": 0.75}
    assert len(lines) == 6


def test_needed_networks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The task non_spatial needs neither a detector nor answers; CLIP is a small one."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("sfumato.evaluation.suites.t2i_compbench.load_parser", lambda: parsed)
    command = ["evaluate", "emoji-infinity", "--suite", "t2i-compbench"]
    command += [
        "--prompts",
        str(write_prompts(tmp_path / "p")),
        "--tasks",
        "non_spatial",
        "--clip",
        str(save_clip(tmp_path / "clip")),
        "--per-prompt",
        "2",
    ]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    (figure,) = read_measurement(tmp_path / "out/emoji-infinity/measurement.json").values()
    assert len(figure.parts) == 2
    assert all(-1 <= part <= 1 for part in figure.parts)


def test_without_spacy_or_its_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with bad_input("spacy", "pip install 'sfumato[compbench]'"):
        load_parser()

    def load(name: str):
        raise OSError(f"[E050] Can't find model {name!r}")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with bad_input("spacy", "python -m spacy download en_core_web_sm"):
        load_parser()


def test_words_of_spacy(monkeypatch: pytest.MonkeyPatch):
    """What is read from a document of spaCy."""
    words = [SimpleNamespace(text=text, pos_=tag) for text, tag in (("red", "ADJ"), ("cars", "NOUN"))]

    class Document(list):
        noun_chunks = (SimpleNamespace(text="red cars"),)

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: lambda caption: Document(words)))
    assert load_parser()("red cars") == Parsed(("red", "cars"), ("ADJ", "NOUN"), ("red cars",))
