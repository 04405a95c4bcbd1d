"""Classes by name and number, and the sampler of classes."""

import pytest
import torch

from sfumato.data.classes import ClassSampler, class_conditions, find_class, find_classes, find_labels
from sfumato.rollout import Conditions

NAMES = ("Tench", "goldfish", "great white shark", "tiger shark", "hen", "ostrich", "house finch")


@pytest.mark.parametrize(
    ("wanted", "label"), [("tench", 0), (" GOLDFISH ", 1), ("tiger shark", 3), ("5", 5), (6, 6), (0, 0), (" 2", 2)]
)
def test_find_class(wanted: str | int, label: int):
    assert find_class(wanted, NAMES) == label


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("goldfisch", r"classes: there is no class 'goldfisch'; did you mean 'goldfish'\?"),
        ("shark", r"did you mean .*'tiger shark'"),
        ("finch", r"did you mean .*'house finch'"),
        ("xylophone", r"`sfumato classes MODEL` lists them"),
        ("", r"classes: there is no class ''"),
        ("--5", r"classes: there is no class .--5."),
        (7, r"classes: there is no class number 7; give 0 to 6"),
        ("-1", r"classes: there is no class number -1"),
    ],
)
def test_unknown_class(wanted: str | int, message: str):
    with pytest.raises(ValueError, match=message) as error:
        find_class(wanted, NAMES)
    assert "\n" not in str(error.value)


def test_find_classes():
    assert find_classes(("hen", 0, "2-4", "goldfish", "3"), NAMES) == [4, 0, 2, 3, 1]
    assert find_classes(("5-5",), NAMES) == [5]
    assert find_classes((), NAMES) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("4-2", r"classes: the range 4-2 is empty"),
        ("3-7", r"no class number 7"),
        ("tench-hen", r"no class 'tench-hen'"),
    ],
)
def test_wrong_ranges(wanted: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_classes((wanted,), NAMES)


def test_class_conditions():
    conditions = class_conditions([3, 1], NAMES)
    assert conditions.labels.tolist() == [3, 1]
    assert conditions.names == ("tiger shark", "goldfish")


def test_sampler_draws_different_classes():
    sampler, rng = ClassSampler(NAMES), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(30):
        conditions = sampler.next(5, rng)
        labels = conditions.labels.tolist()
        assert len(set(labels)) == 5
        assert conditions.names == tuple(NAMES[label] for label in labels)
        seen.add(tuple(labels))
    assert len(seen) > 20
    assert set().union(*seen) == set(range(7))
    # More than there are: each twice or three times.
    counts = torch.bincount(sampler.next(18, rng).labels, minlength=7)
    assert counts.min() == 2
    assert counts.max() == 3


def test_sampler_draws_uniformly():
    sampler, rng = ClassSampler(NAMES), torch.Generator().manual_seed(0)
    labels = torch.cat([sampler.next(2, rng).labels for _ in range(3500)])
    counts = torch.bincount(labels, minlength=7)
    assert ((counts - 1000).square() / 1000).sum() < 22.5  # 6 degrees of freedom, one in a thousand


def test_sampler_of_a_subset():
    sampler = ClassSampler(NAMES, ("hen", "0-1"))
    assert sampler.labels == [4, 0, 1]
    conditions = sampler.next(3, torch.Generator().manual_seed(0))
    assert sorted(conditions.labels.tolist()) == [0, 1, 4]
    with pytest.raises(ValueError, match="did you mean 'ostrich'"):
        ClassSampler(NAMES, ("ostrik",))


def test_sampler_is_reproducible():
    def draw(seed: int) -> list[int]:
        rng = torch.Generator().manual_seed(seed)
        return [label for _ in range(5) for label in ClassSampler(NAMES).next(4, rng).labels.tolist()]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_labels_by_name_and_metadata():
    asked = Conditions(labels=torch.tensor([0, 1]), names=("hen", "a bird"), metadata=({}, {"class": "ostrich"}))
    labels = find_labels(NAMES, asked)
    assert labels is not None
    assert labels.tolist() == [4, 5]
    for wanted in ("owl", ["hen"], {"name": "hen"}, 4, None):
        data = ({}, {"class": wanted})
        assert find_labels(NAMES, Conditions(labels=torch.tensor([0, 1]), names=("hen", "hen"), metadata=data)) is None
