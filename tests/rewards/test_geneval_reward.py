"""GenEval as a reward: marks of constructed scenes, and images seen by a stand-in detector."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from errors import bad_input
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards import build_reward, geneval_reward
from sfumato.rewards.detector import Detector
from sfumato.rewards.geneval_scoring import Detection, graded

DOG, TIE = {"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}
RED = {"class": "car", "count": 2, "color": "red"}


def at(x: float) -> Detection:
    return Detection((x - 5, -5, x + 5, 5), 0.95)


@pytest.mark.parametrize(
    ("include", "objects", "colors", "expected"),
    [
        ([{"class": "clock", "count": 4}], {"clock": 4}, (), [1.0]),
        ([{"class": "clock", "count": 4}], {"clock": 3}, (), [0.75]),
        ([{"class": "clock", "count": 4}], {"clock": 6}, (), [0.5]),
        ([{"class": "clock", "count": 1}], {"clock": 4}, (), [-2.0]),
        ([DOG, {"class": "cow", "count": 1}], {"dog": 1}, (), [1.0, 0.0]),
        ([RED], {"car": 2}, ("red", "red"), [1.0, 1.0]),
        ([RED], {"car": 2}, ("red", "blue"), [1.0, 0.5]),
        ([RED], {"car": 1}, ("red",), [0.5, 0.0]),  # nobody asks for colors
        ([DOG, TIE], {"dog": 1, "tie": 1}, (), [1.0, 1.0, 1.0]),
        ([TIE | {"position": ["left of", 0]}, DOG][::-1], {"dog": 1, "tie": 1}, (), [1.0, 1.0, 0.0]),
        ([DOG, TIE], {"tie": 1}, (), [0.0, 1.0, 0.0]),
        ([DOG, TIE], {"dog": 1}, (), [1.0, 0.0, 0.0]),
        ([], {}, (), [0.0]),
    ],
)
def test_marks(include: list[Any], objects: dict[str, int], colors: tuple[str, ...], expected: list[float]):
    places = {"dog": 0.0, "tie": 50.0}
    found = {name: [at(places.get(name, 0.0))] * count for name, count in objects.items()}
    mark = graded(found, {"include": include}, lambda chosen, name: colors[: len(chosen)])
    assert mark == pytest.approx(sum(expected) / len(expected))


class Eyes(Detector):
    """A stand-in that sees as many red cars as the image's first pixel says."""

    model = None

    def __init__(self):
        pass

    def detect(self, image: Tensor) -> dict[str, list[Detection]]:
        return {"car": [at(0)] * round(float(image[0, 0, 0]) * 10)}

    def colors(self, image: Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        return ["red"] * len(objects)


def test_images_are_scored_by_what_the_detector_sees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geneval_reward, "load", lambda detector, clip: Eyes())
    monkeypatch.setattr(geneval_reward, "replace", lambda eyes, device: eyes)
    images = torch.zeros(4, 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    data = {"tag": "color_attr", "include": [RED], "exclude": [{"class": "car", "count": 3}]}
    words = Words(names=("a photo of two red cars",) * 4, metadata=(data,) * 4)
    for name, expected in (("geneval", [0, 0.25, 1, 0.25]), ("geneval?score=correct", [0, 0, 1, 0])):
        assert build_reward({name: 1.0})(images, words)[0].tolist() == expected
    for metadata, piece in (
        ({}, "tag or include"),
        (data | {"include": [{"class": "unicorn", "count": 1}]}, "unicorn"),
    ):
        with bad_input("reward", "prompts: 'a photo of two red cars'", piece):
            build_reward({"geneval": 1.0})(images, Words(names=words.names, metadata=(metadata,) * 4))


def test_the_networks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Random networks in the format of the released ones."""
    pytest.importorskip("transformers")
    from tiny_transformers import save_clip, save_mask2former

    monkeypatch.setattr("sfumato.rewards.detector.SHORT", 96)  # the published side takes seconds per image
    monkeypatch.setattr("sfumato.rewards.geneval_scoring.THRESHOLD", 0.01)
    folders = save_mask2former(tmp_path_factory.mktemp("detector")), save_clip(tmp_path_factory.mktemp("clip"))
    name = f"geneval?detector={folders[0]}&clip={folders[1]}"
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = geneval_reward.load(*map(str, folders)).detect(images[0])
    (kind, *_), count = seen, len(next(iter(seen.values())))
    data = {"tag": "colors", "include": [{"class": kind, "count": count, "color": "white"}]}
    scores, _ = build_reward({name: 1.0})(images, Words(names=("", ""), metadata=(data, data)))
    colors = geneval_reward.load(*map(str, folders)).colors(images[0], seen[kind], kind)
    assert scores[0].item() == pytest.approx((1 + colors.count("white") / count) / 2)
    assert scores.isfinite().all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    geneval_reward.load.cache_clear()
    with bad_input("reward", "scipy is not installed", "pip install 'sfumato[geneval]'"):
        build_reward({"geneval": 1.0})
