"""Conditions and rollouts: indexing, repeating, splitting."""

import pytest
import torch

from sfumato.rollout import CaptionFeatures, Conditions, Rollout, concatenate


def conditions() -> Conditions:
    return Conditions(labels=torch.tensor([7, 8, 9]), names=("seven", "eight", "nine"))


def rollout() -> Rollout:
    return Rollout(
        conditions=conditions(),
        tokens=torch.arange(6).reshape(3, 2),
        log_probs=-torch.arange(6.0).reshape(3, 2),
        entropy=10 + torch.arange(6.0).reshape(3, 2),
    )


def test_indexing():
    assert conditions()[torch.tensor([2, 0])].names == ("nine", "seven")
    assert conditions()[torch.tensor([2, 0])].labels.tolist() == [9, 7]
    assert conditions()[1:].names == ("eight", "nine")
    assert conditions()[1:].labels.tolist() == [8, 9]
    assert len(conditions()[:0]) == 0


def test_repeat_keeps_copies_together():
    repeated = conditions().repeat(2)
    assert repeated.labels.tolist() == [7, 7, 8, 8, 9, 9]
    assert repeated.names == ("seven", "seven", "eight", "eight", "nine", "nine")


def test_every_label_has_a_name():
    with pytest.raises(ValueError, match="names: 1 names for 2 labels"):
        Conditions(labels=torch.tensor([0, 1]), names=("one",))


def described() -> Conditions:
    """Four images of three captions, of 2, 1 and 3 text tokens."""
    features = [torch.full((length, 2), float(length)) for length in (2, 1, 3)]
    return Conditions(
        labels=torch.tensor([2, 0, 0, 1]),
        names=("a red fox", "an ox", "an ox", "owl"),
        captions=("a fox that is red", "one ox", "one ox", "an owl"),
        metadata=({"color": "red"}, {"count": 1}, {"count": 1}, {}),
        text=CaptionFeatures.padded(features),
        null=torch.tensor([False, True, False, False]),
    )


def test_captions_are_the_names_unless_given():
    assert conditions().captions == ("seven", "eight", "nine")
    assert conditions().metadata == ({}, {}, {})
    assert conditions()[1:].captions == ("eight", "nine")
    assert described().captions[0] == "a fox that is red"


def test_indexing_takes_everything_along():
    whole = described()
    for part in (whole[torch.tensor([3, 1])], whole[1:].repeat(1)[torch.tensor([2, 0])]):
        assert part.labels.tolist() == [1, 0]
        assert part.names == ("owl", "an ox")
        assert part.captions == ("an owl", "one ox")
        assert part.metadata == ({}, {"count": 1})
        assert part.null is not None
        assert part.null.tolist() == [False, True]
        # Labels are rows of the text features, which all parts share.
        assert part.text is whole.text
    repeated = whole[:2].repeat(2)
    assert repeated.captions == ("a fox that is red", "a fox that is red", "one ox", "one ox")
    assert [entry.get("color") for entry in repeated.metadata] == ["red", "red", None, None]
    assert conditions()[1:].null is None
    assert conditions()[1:].text is None


def test_moving_takes_everything_along():
    moved = described().to("meta")
    assert moved.text is not None
    assert moved.null is not None
    devices = {tensor.device.type for tensor in (moved.labels, moved.null, moved.text.features, moved.text.mask)}
    assert devices == {"meta"}
    assert (moved.names, moved.captions, moved.metadata) == (
        described().names, described().captions, described().metadata,
    )  # fmt: skip
    assert conditions().to("cpu").text is None


def test_only_the_captions_asked_for_move():
    whole = described()
    assert whole.text is not None
    part = whole[torch.tensor([2, 0])]
    moved = part.to("cpu")
    assert moved.text is not None
    assert len(moved.text) == len(set(part.labels.tolist())) < len(whole.text)
    for before, after in zip(part.labels, moved.labels, strict=True):
        assert torch.equal(whole.text.features[before], moved.text.features[after])
        assert torch.equal(whole.text.mask[before], moved.text.mask[after])


def test_as_many_captions_as_labels():
    labels, names = torch.tensor([0, 1]), ("one", "two")
    with pytest.raises(ValueError, match="captions: 3 captions for 2 labels; give one each"):
        Conditions(labels=labels, names=names, captions=("one", "two", "three"))
    with pytest.raises(ValueError, match="metadata: 1 metadata for 2 labels; give one each"):
        Conditions(labels=labels, names=names, metadata=({},))


def test_captions_are_padded_at_the_left():
    rows = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]), torch.ones(4, 2)]
    text = CaptionFeatures.padded(rows)
    assert len(text) == 3
    assert text.features.tolist()[:2] == [[[0, 0], [0, 0], [1, 2], [3, 4]], [[0, 0], [0, 0], [0, 0], [5, 6]]]
    assert text.mask.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    # What is too long loses its end, not its beginning.
    cut = CaptionFeatures.padded([torch.arange(6.0).reshape(3, 2), rows[1]], longest=2)
    assert cut.features.tolist() == [[[0, 1], [2, 3]], [[0, 0], [5, 6]]]
    assert cut.mask.int().tolist() == [[1, 1], [0, 1]]
    alone = CaptionFeatures.padded([rows[0]], longest=9)
    assert torch.equal(alone.features[0], rows[0])
    assert alone.mask.all()


def test_parts_of_a_rollout():
    part = rollout()[torch.tensor([2, 0])]
    assert part.conditions.names == ("nine", "seven")
    assert part.tokens.tolist() == [[4, 5], [0, 1]]
    assert part.log_probs.tolist() == [[-4.0, -5.0], [0.0, -1.0]]
    assert part.entropy.tolist() == [[14.0, 15.0], [10.0, 11.0]]


def test_split_and_concatenate_are_inverse():
    parts = list(rollout().split(2))
    assert [len(part) for part in parts] == [2, 1]
    whole = concatenate(parts, conditions())
    assert whole.conditions.names == conditions().names
    for name in ("tokens", "log_probs", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(rollout(), name))
    assert torch.equal(whole.conditions.labels, conditions().labels)
