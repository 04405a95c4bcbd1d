"""GenEval's rules on constructed scenes with known answers."""

from collections.abc import Sequence

import pytest

from sfumato.evaluation.geneval import Detection, is_correct, keep, relative_position, summary


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
