"""Classes by name and number, and the sampler of classes."""

import pytest
import torch
from errors import bad_input

from sfumato.data.classes import ClassSampler, WordsSampler
from sfumato.naming import class_words, find_class, find_classes, find_labels
from sfumato.request import Words

NAMES = ("Tench", "goldfish", "great white shark", "tiger shark", "hen", "ostrich", "house finch")


def test_accents_in_either_unicode_form():
    composed, decomposed = "cr\u00eape", "cre\u0302pe"
    assert find_class(decomposed, ("dog", composed)) == 1
    assert find_class(composed.upper(), ("dog", decomposed)) == 1


@pytest.mark.parametrize(
    ("wanted", "label"), [("tench", 0), (" GOLDFISH ", 1), ("tiger shark", 3), ("5", 5), (6, 6), (0, 0), (" 2", 2)]
)
def test_find_class(wanted: str | int, label: int):
    assert find_class(wanted, NAMES) == label


@pytest.mark.parametrize(
    ("wanted", "pieces"),
    [
        ("goldfisch", ("'goldfisch'", "'goldfish'")),
        ("shark", ("'shark'", "'tiger shark'")),
        ("finch", ("'finch'", "'house finch'")),
        ("xylophone", ("'xylophone'", "`sfumato classes MODEL`")),
        ("", ("''",)),
        ("--5", ("'--5'",)),
        (7, ("7", "0 to 6")),
        ("-1", ("-1", "0 to 6")),
    ],
)
def test_unknown_class(wanted: str | int, pieces: tuple[str, ...]):
    with bad_input("classes", *pieces):
        find_class(wanted, NAMES)


def test_find_classes():
    assert find_classes(("hen", 0, "2-4", "goldfish", "3"), NAMES) == [4, 0, 2, 3, 1]
    assert find_classes(("5-5",), NAMES) == [5]
    assert find_classes((), NAMES) == []


@pytest.mark.parametrize(
    ("wanted", "piece"),
    [("4-2", "4-2"), ("3-7", "7"), ("tench-hen", "'tench-hen'")],
)
def test_wrong_ranges(wanted: str, piece: str):
    with bad_input("classes", piece):
        find_classes((wanted,), NAMES)


def test_names_that_are_numbers():
    folders = tuple(sorted(map(str, range(1, 13))))  # "1", "10", "11", "12", "2", ...
    assert find_class("10", folders) == 1
    assert folders[find_class("8", folders)] == "8"
    assert [folders[label] for label in find_classes(("8-11", "2"), folders)] == ["8", "9", "10", "11", "2"]
    assert find_class(10, folders) == 10  # a label
    for wanted in ("0", "13"):
        with bad_input("classes", repr(wanted), "names"):
            find_class(wanted, folders)
    with bad_input("classes", "'0'"):
        find_classes(("0-3",), folders)
    years = ("cat", "1999", "dog", "1-2")
    assert find_classes(("1999", "1-2", "dog"), years) == [1, 3, 2]
    with bad_input("classes", "'2'", "names"):
        find_class("2", years)


def test_names_that_differ_in_case():
    names = ("Cardigan", "crane", "crane", "cardigan")
    assert find_class("cardigan", names) == 3
    assert find_class("Cardigan", names) == 0
    assert find_class("Crane", names) == 1
    with bad_input("classes", "'CARDIGAN'", "'Cardigan'", "'cardigan'"):
        find_class("CARDIGAN", names)


def test_class_words():
    words = class_words([3, 1], NAMES)
    assert words.labels.tolist() == [3, 1]
    assert words.names == ("tiger shark", "goldfish")
    assert words.captions == ("a photo of a tiger shark", "a photo of a goldfish")
    assert class_words([4], NAMES, "one {name} and another {name}").captions == ("one hen and another hen",)


def test_sampler_draws_different_classes():
    sampler, rng = ClassSampler(NAMES), torch.Generator().manual_seed(0)
    assert isinstance(sampler, WordsSampler)
    seen = set()
    for _ in range(30):
        words = sampler.next(5, rng)
        labels = words.labels.tolist()
        assert len(set(labels)) == 5
        assert words.names == tuple(NAMES[label] for label in labels)
        seen.add(tuple(labels))
    assert len(seen) > 20
    assert set().union(*seen) == set(range(7))
    # More than there are, so each class appears two or three times.
    counts = torch.bincount(sampler.next(18, rng).labels, minlength=7)
    assert counts.min() == 2
    assert counts.max() == 3


def test_sampler_draws_uniformly():
    sampler, rng = ClassSampler(NAMES), torch.Generator().manual_seed(0)
    labels = torch.cat([sampler.next(2, rng).labels for _ in range(3500)])
    counts = torch.bincount(labels, minlength=7)
    assert ((counts - 1000).square() / 1000).sum() < 22.5  # 6 degrees of freedom, p = 0.001


def test_sampler_of_a_subset():
    sampler = ClassSampler(NAMES, ("hen", "0-1"))
    assert sampler.labels == [4, 0, 1]
    words = sampler.next(3, torch.Generator().manual_seed(0))
    assert sorted(words.labels.tolist()) == [0, 1, 4]
    with bad_input("classes", "'ostrik'", "'ostrich'"):
        ClassSampler(NAMES, ("ostrik",))


def test_sampler_is_reproducible():
    def draw(seed: int) -> list[int]:
        rng = torch.Generator().manual_seed(seed)
        return [label for _ in range(5) for label in ClassSampler(NAMES).next(4, rng).labels.tolist()]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_labels_by_name_and_metadata():
    asked = Words(labels=torch.tensor([0, 1]), names=("hen", "a bird"), metadata=({}, {"class": "ostrich"}))
    labels = find_labels(NAMES, asked)
    assert labels is not None
    assert labels.tolist() == [4, 5]
    for wanted in ("owl", ["hen"], {"name": "hen"}, 4, None):
        data = ({}, {"class": wanted})
        assert find_labels(NAMES, Words(labels=torch.tensor([0, 1]), names=("hen", "hen"), metadata=data)) is None
