"""Caption reading: each caption once, when first needed, with the generator's own encoder or from disk."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_llamagen

from sfumato.request import Words
from sfumato.text.reader import CaptionReader, ReadsCaptions


class Lengths:
    """An encoder that returns the vector (length of the word, n) for the n-th word, and records what it reads."""

    name, width = "lengths", 2

    def __init__(self):
        self.read: list[list[str]] = []

    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        self.read.append(list(captions))
        return [torch.tensor([[len(w), n] for n, w in enumerate(c.split())]).float() for c in captions]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Lengths]]:
    """Return a list of the encoders that readers load: name, maximum caption length and encoder."""
    seen: list[tuple[str, int, Lengths]] = []

    def load(name: str, device: object, longest: int, clean: bool) -> Lengths:
        seen.append((name, longest, Lengths()))
        return seen[-1][2]

    monkeypatch.setattr("sfumato.text.reader.load_text_encoder", load)
    return seen


def test_captions_are_read_once_and_when_they_are_needed(loaded: list, capsys: pytest.CaptureFixture[str]):
    reader = CaptionReader("someone/t5", 2, 2)
    assert loaded == []
    inputs = reader.read(["a cat", "one red dog", "birds", "a cat"])
    ((name, longest, encoder),) = loaded
    assert (name, longest) == ("someone/t5", 2)
    assert encoder.read == [["a cat", "one red dog", "birds"]]
    assert inputs.rows.tolist() == [0, 1, 2, 0]
    assert inputs.null is None
    assert inputs.captions.features.tolist() == [
        [[1, 0], [3, 1]],
        [[3, 0], [3, 1]],  # cut off after two tokens
        [[0, 0], [5, 0]],  # padded on the left
    ]
    assert inputs.captions.mask.tolist() == [[True, True], [True, True], [False, True]]
    # Each batch is read separately, and the encoder is loaded once.
    reader.read(["birds", "birds"])
    assert encoder.read[-1] == ["birds"]
    assert len(loaded) == 1
    reader.read(["two long captions"])
    assert capsys.readouterr().err == "sfumato: captions are cut after 2 tokens, e.g. 'one red dog' of 3\n"  # said once


def test_another_encoder_takes_the_place_of_the_first(loaded: list):
    reader = CaptionReader("someone/t5", 2, 2)
    reader.read(["a cat"])
    reader.use("someone/else")
    assert reader.encoder == "someone/else"
    reader.read(["a cat"])
    assert [name for name, _, _ in loaded] == ["someone/t5", "someone/else"]


def test_prepared_captions_come_from_disk(loaded: list, tmp_path: Path):
    reader, told = CaptionReader("someone/t5", 5, 2), []
    reader.prepare(["a cat", "birds", "a cat"], tmp_path, progress=lambda *done: told.append(done))
    ((_, _, encoder),) = loaded
    assert [sorted(captions) for captions in encoder.read] == [["a cat", "birds"]]
    assert told == [(2, 2)]
    inputs = reader.read(["birds", "a cat", "birds"])
    assert len(encoder.read) == 1  # the encoder is not called again
    assert inputs.rows.tolist() == [0, 1, 0]
    assert inputs.captions.features.tolist() == [[[0, 0], [5, 0]], [[1, 0], [3, 1]]]
    with bad_input("prompts", "'a dog'"):
        reader.read(["a dog"])
    again = CaptionReader("someone/t5", 5, 2)
    again.prepare(["birds", "a cat"], tmp_path)
    assert again.read(["birds"]).captions.features.tolist() == [[[5, 0]]]
    assert len(loaded) == 1
    reader.use("someone/t5")  # an encoder without a cache can read all captions
    assert len(reader.read(["a dog"])) == 1


def test_word_vectors_need_no_preparation(tmp_path: Path):
    reader = CaptionReader("word-vectors", 4, 64)
    reader.prepare(["a cat"], tmp_path)
    assert list(tmp_path.iterdir()) == []
    inputs = reader.read(["a red dog", "an apple"])
    assert inputs.captions.features.shape[:2] == (2, 3)
    assert inputs.captions.mask.tolist() == [[True] * 3, [False, True, True]]


def test_a_generator_of_captions_has_a_reader(loaded: list):
    generator = tiny_llamagen(text=True)
    assert isinstance(generator, ReadsCaptions)
    words = Words(names=("a cat", "birds"), captions=("birds", "birds"))
    inputs = generator.inputs(words)  # from the captions, not the names
    ((_, longest, encoder),) = loaded
    assert (longest, encoder.read) == (5, [["birds"]])
    assert inputs[torch.tensor([1, 0, 1])].rows.tolist() == [0, 0, 0]  # pyright: ignore
