"""Words, inputs, and requests with both: indexing, repeating, moving."""

from collections.abc import Mapping

import pytest
import torch
from tiny import tiny_var
from torch import Tensor

import sfumato
from sfumato.request import CaptionFeatures, ClassInputs, Index, Inputs, Request, TextInputs, Words, inputs_of
from sfumato.settings import Settings
from sfumato.testing import class_request, text_request


def words() -> Words:
    return Words(labels=torch.tensor([7, 8, 9]), names=("seven", "eight", "nine"))


def described() -> Words:
    """Return words for four images of three captions."""
    return Words(
        names=("a red fox", "an ox", "an ox", "owl"),
        labels=torch.tensor([2, 0, 0, 1]),
        captions=("a fox that is red", "one ox", "one ox", "an owl"),
        metadata=({"color": "red"}, {"count": 1}, {"count": 1}, {}),
    )


def text_inputs() -> TextInputs:
    """Return inputs for the same images: captions of 2, 1 and 3 text tokens; the second image is unconditional."""
    features = [torch.full((length, 2), float(length)) for length in (2, 1, 3)]
    return TextInputs(
        rows=torch.tensor([2, 0, 0, 1]),
        captions=CaptionFeatures.padded(features),
        null=torch.tensor([False, True, False, False]),
    )


# ---- words


def test_indexing_words():
    assert words()[torch.tensor([2, 0])].names == ("nine", "seven")
    assert words()[torch.tensor([2, 0])].labels.tolist() == [9, 7]
    assert words()[1:].names == ("eight", "nine")
    assert words()[1:].labels.tolist() == [8, 9]
    assert words()[::2].names == ("seven", "nine")
    assert words()[-1:].names == ("nine",)
    assert len(words()[:0]) == 0
    assert len(words()[torch.tensor([], dtype=torch.int64)]) == 0


def test_repeat_keeps_copies_together():
    repeated = words().repeat(2)
    assert repeated.labels.tolist() == [7, 7, 8, 8, 9, 9]
    assert repeated.names == ("seven", "seven", "eight", "eight", "nine", "nine")


def test_as_many_of_everything_as_names():
    labels, names = torch.tensor([0, 1]), ("one", "two")
    with pytest.raises(ValueError, match=r"^labels: 2 .*\b1 "):
        Words(labels=labels, names=("one",))
    with pytest.raises(ValueError, match=r"^captions: 3 .*\b2 "):
        Words(labels=labels, names=names, captions=("one", "two", "three"))
    with pytest.raises(ValueError, match=r"^metadata: 1 .*\b2 "):
        Words(labels=labels, names=names, metadata=({},))


def test_captions_are_the_names_unless_given():
    assert words().captions == ("seven", "eight", "nine")
    assert words().metadata == ({}, {}, {})
    assert words()[1:].captions == ("eight", "nine")
    assert described().captions[0] == "a fox that is red"


def test_labels_are_minus_one_unless_given():
    asked = Words(names=("a red fox", "an ox"))
    assert asked.labels.tolist() == [-1, -1]
    assert asked.labels.dtype == torch.int64
    assert asked[1:].repeat(2).labels.tolist() == [-1, -1]
    assert len(Words(names=())) == 0


def test_words_take_everything_along():
    whole = described()
    for part in (whole[torch.tensor([3, 1])], whole[1:].repeat(1)[torch.tensor([2, 0])]):
        assert part.labels.tolist() == [1, 0]
        assert part.names == ("owl", "an ox")
        assert part.captions == ("an owl", "one ox")
        assert part.metadata == ({}, {"count": 1})
    repeated = whole[:2].repeat(2)
    assert repeated.captions == ("a fox that is red", "a fox that is red", "one ox", "one ox")
    assert [entry.get("color") for entry in repeated.metadata] == ["red", "red", None, None]


def test_moving_words():
    moved = described().to("meta")
    assert moved.labels.device.type == "meta"
    assert (moved.names, moved.captions, moved.metadata) == (
        described().names, described().captions, described().metadata,
    )  # fmt: skip
    # Names are selected by position, whatever the device of the labels.
    assert moved[torch.tensor([3, 1])].names == ("owl", "an ox")
    assert moved[torch.tensor([3, 1])].labels.device.type == "meta"


# ---- inputs


@pytest.mark.parametrize("inputs", [ClassInputs(labels=torch.tensor([0])), text_inputs()], ids=["classes", "text"])
def test_they_are_inputs(inputs: Inputs):
    assert isinstance(inputs, Inputs)


def test_indexing_class_inputs():
    inputs = ClassInputs(labels=torch.tensor([7, 8, 9]))
    assert len(inputs) == 3
    assert inputs[torch.tensor([2, 0, 2])].labels.tolist() == [9, 7, 9]
    assert inputs[1:].labels.tolist() == [8, 9]
    assert inputs[1:].null is None
    assert len(inputs[:0]) == 0


def test_dropping_classes():
    inputs = ClassInputs(labels=torch.tensor([7, 8, 9]))
    dropped = inputs.drop(torch.tensor([False, True, True]))
    assert inputs.null is None  # the original is unchanged
    assert dropped.labels.tolist() == [7, 8, 9]
    for part, null in ((dropped, [False, True, True]), (dropped[torch.tensor([2, 0])], [True, False])):
        assert part.null is not None
        assert part.null.tolist() == null
    moved = dropped.to("meta")
    assert moved.null is not None
    assert moved.labels.device.type == moved.null.device.type == "meta"
    assert inputs.to("meta").null is None
    again = dropped.drop(torch.tensor([True, False, False]))
    assert again.null is not None
    assert again.null.tolist() == [True, False, False]


def test_parts_of_text_inputs_share_the_table():
    whole = text_inputs()
    assert len(whole) == 4
    for part in (whole[torch.tensor([3, 1])], whole[1:][torch.tensor([2, 0])]):
        assert part.rows.tolist() == [1, 0]
        assert part.null is not None
        assert part.null.tolist() == [False, True]
        assert part.captions is whole.captions
    without = TextInputs(rows=whole.rows, captions=whole.captions)
    assert without[1:].null is None
    assert len(without[:0]) == 0


def test_dropping_captions():
    whole = TextInputs(rows=torch.tensor([2, 0, 1]), captions=text_inputs().captions)
    dropped = whole.drop(torch.tensor([True, False, True]))
    assert whole.null is None
    assert dropped.null is not None
    assert dropped.null.tolist() == [True, False, True]
    assert dropped.captions is whole.captions
    assert torch.equal(dropped.rows, whole.rows)


def test_moving_text_inputs_takes_everything_along():
    moved = text_inputs().to("meta")
    assert moved.null is not None
    tensors = (moved.rows, moved.null, moved.captions.features, moved.captions.mask)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.captions.features.shape == (3, 3, 2)
    here = text_inputs()
    assert here.to("cpu") is here  # nothing is copied


def test_only_the_captions_asked_for_move(monkeypatch: pytest.MonkeyPatch):
    whole = text_inputs()
    part = whole[torch.tensor([2, 0, 1])]
    assert len(part.to("meta").captions) == len(set(part.rows.tolist())) == 2 < len(whole.captions)
    # No second device with real values is available, so the CPU gets another name.
    monkeypatch.setattr("sfumato.request.torch.device", lambda device: None)
    moved = part.to("cpu")
    assert len(moved.captions) == 2
    for before, after in zip(part.rows.tolist(), moved.rows.tolist(), strict=True):
        assert torch.equal(whole.captions.features[before], moved.captions.features[after])
        assert torch.equal(whole.captions.mask[before], moved.captions.mask[after])
    assert moved.null is not None
    assert part.null is not None
    assert torch.equal(moved.null, part.null)


def test_captions_are_padded_at_the_left():
    rows = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]), torch.ones(4, 2)]
    text = CaptionFeatures.padded(rows)
    assert len(text) == 3
    assert text.features.tolist()[:2] == [[[0, 0], [0, 0], [1, 2], [3, 4]], [[0, 0], [0, 0], [0, 0], [5, 6]]]
    assert text.mask.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    # Long captions lose their end, not their beginning.
    cut = CaptionFeatures.padded([torch.arange(6.0).reshape(3, 2), rows[1]], longest=2)
    assert cut.features.tolist() == [[[0, 1], [2, 3]], [[0, 0], [5, 6]]]
    assert cut.mask.int().tolist() == [[1, 1], [0, 1]]
    alone = CaptionFeatures.padded([rows[0]], longest=9)
    assert torch.equal(alone.features[0], rows[0])
    assert alone.mask.all()


# ---- requests


def request_of_captions() -> Request:
    return Request(words=described(), inputs=text_inputs())


@pytest.mark.parametrize("index", [torch.tensor([3, 1]), slice(1, None, 2)], ids=["positions", "slice"])
def test_indexing_a_request_indexes_both(index: Index):
    part = request_of_captions()[index]
    inputs = part.inputs
    assert isinstance(inputs, TextInputs)
    expected: Mapping[str, int] = {"owl": 1, "an ox": 0}
    assert inputs.rows.tolist() == [expected[name] for name in part.words.names]
    assert len(part) == len(part.words) == len(inputs) == 2


def test_repeating_a_request_repeats_both():
    repeated = request_of_captions()[:2].repeat(3)
    assert repeated.words.names == ("a red fox",) * 3 + ("an ox",) * 3
    assert isinstance(repeated.inputs, TextInputs)
    assert repeated.inputs.rows.tolist() == [2, 2, 2, 0, 0, 0]
    assert repeated.inputs.null is not None
    assert repeated.inputs.null.tolist() == [False] * 3 + [True] * 3
    assert class_request([4, 1]).repeat(2).words.labels.tolist() == [4, 4, 1, 1]


def test_only_the_inputs_of_a_request_move():
    moved = class_request([4, 1]).to("meta")
    assert isinstance(moved.inputs, ClassInputs)
    assert moved.inputs.labels.device.type == "meta"
    assert moved.words.labels.tolist() == [4, 1]
    # Positions on any device can be used as an index.
    assert moved[torch.tensor([1])].words.names == ("1",)


def test_as_many_inputs_as_words():
    with pytest.raises(ValueError, match=r"^inputs: 4 .*\b3 "):
        Request(words=words(), inputs=text_inputs())


def test_inputs_of_a_request_and_of_inputs():
    request = request_of_captions()
    assert inputs_of(request) is request.inputs
    assert inputs_of(request.inputs) is request.inputs


def test_requests_in_a_line():
    asked = class_request([2, 0], ("two", "none"))
    assert (asked.words.names, asked.words.labels.tolist()) == (("two", "none"), [2, 0])
    features: list[Tensor] = [torch.ones(2, 3), torch.full((1, 3), 5.0)]
    text = text_request(features, captions=("a cat", "dogs"), rows=[1, 0, 1])
    assert text.words.captions == ("dogs", "a cat", "dogs")
    assert text.words.labels.tolist() == [-1] * 3
    assert isinstance(text.inputs, TextInputs)
    assert text.inputs.captions.mask.int().tolist() == [[1, 1], [0, 1]]
    assert text.inputs.rows.tolist() == [1, 0, 1]


def test_one_line_requests():
    request = sfumato.testing.class_request([3, 0], ["dog", "ant"])
    assert request.words.names == ("dog", "ant")
    assert request.words.labels.tolist() == [3, 0]
    generator = tiny_var()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    # A generator reads a request and its inputs alike, without guidance unless settings say so.
    logits = generator.logits(request, tokens)
    inputs = request.inputs
    assert isinstance(inputs, ClassInputs)
    assert torch.equal(logits, generator.logits(inputs, tokens, Settings()))
    first = generator.step(generator.start(request), None)[:, 0]
    torch.testing.assert_close(first, logits[:, 0], rtol=0, atol=1e-5)


def test_strings_are_read_by_the_bundled_word_vectors():
    captions = ["red apple on a blue background", "octopus"]
    request = text_request(captions, rows=[1, 0, 0])
    assert request.words.names == ("octopus", captions[0], captions[0])
    policy = sfumato.load("emoji-t2i")
    other = policy.request(Words(names=("octopus", captions[0], captions[0])))
    rollout = policy.sample(request, torch.arange(3))
    assert torch.equal(rollout.tokens, policy.sample(other, torch.arange(3)).tokens)
