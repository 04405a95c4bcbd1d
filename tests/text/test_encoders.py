"""Text encoders: the bundled word vectors, T5, cleaned captions, and the cache of features on disk."""

import gc
import json
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from errors import bad_input

from sfumato.errors import UserError
from sfumato.files import staging
from sfumato.request import CaptionFeatures
from sfumato.text.cache import CachedReader, cache_features
from sfumato.text.cleaning import clean_caption
from sfumato.text.encoders import T5Reader, TextEncoder, WordVectors, load_text_encoder

WORDS = ["a", "red", "blue", "apple", "pear", "on", "the", "table", "of", "wood", "and", "in", "front", "two", "big"]


# ---- word vectors


def test_word_vectors():
    reader = load_text_encoder("word-vectors")
    assert isinstance(reader, TextEncoder)
    assert reader is load_text_encoder("word-vectors", "cpu")
    red_apple, again, apple_red, apple = reader.encode(["Red Apple", "red  apple", "apple red", "apple"])
    assert red_apple.shape == (2, reader.width)
    assert torch.equal(red_apple, again)
    assert torch.equal(apple_red, red_apple.flip(0))  # without context, a piece always has the same vector
    assert torch.equal(apple[0], red_apple[1])
    assert red_apple.dtype == torch.float32


def test_word_vectors_of_no_words():
    reader = load_text_encoder("word-vectors")
    assert isinstance(reader, WordVectors)
    separator = reader.vectors[reader.tokenizer.token_to_id("[SEP]")]
    for caption in ("", "  "):
        assert torch.equal(reader.encode([caption])[0], separator[None])
    unknown = reader.vectors[reader.tokenizer.token_to_id("[UNK]")]
    assert torch.equal(reader.encode(["\U0001f9cc"])[0], unknown[None])
    assert torch.equal(reader.encode(["apple \U0001f9cc"])[0][1], unknown)
    assert not torch.equal(unknown, separator)
    assert reader.encode([]) == []


@pytest.mark.parametrize(
    ("word", "related", "unrelated"),
    [("apple", "pear", "trumpet"), ("cat", "dog", "airplane"), ("red", "blue", "seven"), ("happy", "joyful", "bread")],
)
def test_like_words_have_like_vectors(word: str, related: str, unrelated: str):
    vectors = load_text_encoder("word-vectors").encode([word, related, unrelated])
    here, near, far = (torch.nn.functional.normalize(v.mean(0), dim=0) for v in vectors)
    assert here @ near > here @ far + 0.1


# ---- T5


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a T5 with random weights, including a decoder as in FLAN-T5, and a tokenizer with a few words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -5.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore
    folder = tmp_path_factory.mktemp("tiny-t5")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    shape = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, dropout_rate=0.5
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(shape).save_pretrained(folder)
    return folder


CAPTIONS = ["A red apple", "a pear on the table of wood", "", "two big blue pear and a red apple in front", "zebra"]


def test_t5_features_are_those_of_transformers(t5_folder: Path):
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(t5_folder), T5EncoderModel.from_pretrained(t5_folder).eval()
    reader = load_text_encoder(str(t5_folder))
    assert isinstance(reader, TextEncoder)
    assert (reader.name, reader.width) == (str(t5_folder), 16)
    features = reader.encode(CAPTIONS)
    assert [len(rows) for rows in features] == [4, 8, 1, 11, 2]  # words and the end-of-sequence token
    for caption, rows in zip(CAPTIONS, features, strict=True):
        tokens = tokenizer([caption.lower()], return_tensors="pt").input_ids
        assert tokens[0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            expected = model(input_ids=tokens).last_hidden_state[0]
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
        assert not rows.requires_grad


def test_t5_pads_as_llamagen_does(t5_folder: Path):
    """Compare with the published steps: pad to 120 positions on the right, then move the caption to the end."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(t5_folder), T5EncoderModel.from_pretrained(t5_folder).eval()
    batch = tokenizer(
        [caption.lower() for caption in CAPTIONS],
        max_length=120,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        right = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    expected = torch.zeros_like(right)
    for row, rows, length in zip(expected, right, batch.attention_mask.sum(1).tolist(), strict=True):
        row[120 - length :] = rows[:length]
    text = CaptionFeatures.padded(T5Reader(str(t5_folder)).encode(CAPTIONS), 120)
    longest = text.features.shape[1]
    assert longest == 11
    torch.testing.assert_close(text.features, expected[:, 120 - longest :], rtol=0, atol=1e-6)
    assert torch.equal(text.mask, batch.attention_mask.flip(1)[:, 120 - longest :].bool())
    assert not expected[:, : 120 - longest].any()


def test_t5_reads_a_caption_alike_in_any_batch(t5_folder: Path):
    together = T5Reader(str(t5_folder)).encode(CAPTIONS)
    by_two = T5Reader(str(t5_folder), batch_size=2).encode(CAPTIONS)
    for caption, *rows in zip(CAPTIONS, together, by_two, strict=True):
        alone = T5Reader(str(t5_folder)).encode([caption])[0]
        for other in rows:
            torch.testing.assert_close(other, alone, rtol=0, atol=1e-6)
    assert T5Reader(str(t5_folder)).encode([]) == []


def test_t5_cuts_long_captions_before_the_end_of_the_sequence(t5_folder: Path, capsys: pytest.CaptureFixture[str]):
    reader = T5Reader(str(t5_folder))
    assert [len(rows) for rows in reader.encode(["a " * 200, "a " * 119, "a " * 118])] == [120, 120, 119]
    note = capsys.readouterr().err
    assert "sfumato: captions are cut after 120 tokens, e.g. 'a a a" in note
    assert note.endswith("...' of 201\n")
    short = T5Reader(str(t5_folder), longest=3)
    for one, other in zip(short.encode(["a red apple on the table"]), reader.encode(["a red"]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_t5_in_bfloat16(t5_folder: Path):
    reader = T5Reader(str(t5_folder))
    assert reader.model.dtype == torch.float32  # on the CPU
    expected = reader.encode(CAPTIONS)
    reader.model.bfloat16()  # as on CUDA
    for rows, wide in zip(reader.encode(CAPTIONS), expected, strict=True):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, wide, rtol=0, atol=0.03 * wide.abs().max().item())


def test_t5_cleans_captions(t5_folder: Path):
    plain, odd = T5Reader(str(t5_folder)).encode(["a red apple", ' "A RED <b>apple</b>" '])
    torch.testing.assert_close(plain, odd, rtol=0, atol=1e-6)


def test_what_cannot_be_loaded(t5_folder: Path, tmp_path: Path):
    with bad_input("text_encoder", "'word-vector'", "'word-vectors'", "google/flan-t5-xl"):
        load_text_encoder("word-vector")
    with short_bad_input("text_encoder", "nobody/no-t5", "download"):
        load_text_encoder("nobody/no-t5")
    with short_bad_input("text_encoder", str(tmp_path), "copy"):
        load_text_encoder(str(tmp_path))
    for file in t5_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with short_bad_input("text_encoder", str(tmp_path), "copy"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with short_bad_input("text_encoder", str(tmp_path), "'bert'", "'t5'"):
        load_text_encoder(str(tmp_path))


@contextmanager
def short_bad_input(field: str, *pieces: str) -> Iterator[None]:
    """Like `bad_input`, and check that the error of transformers is shortened."""
    with pytest.raises(UserError) as error:
        yield
    with bad_input(field, *pieces):
        raise error.value
    assert len(str(error.value)) < 500


def test_t5_with_missing_weights(t5_folder: Path, tmp_path: Path):
    import safetensors.torch

    for file in t5_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with bad_input("text_encoder", str(tmp_path), "encoder.final_layer_norm.weight"):
        load_text_encoder(str(tmp_path))


def test_transformers_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with bad_input("text_encoder", "google/flan-t5-xl", "pip install 'sfumato[text]'"):
        load_text_encoder("google/flan-t5-xl")
    load_text_encoder("word-vectors")  # works without it


# ---- cleaned captions


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [  # results of LlamaGen's own code
        ("A blue Porsche 356 parked in front of a wall.", "a blue porsche 356 parked in front of a wall."),
        (' "A map made out of sushi." It is on a table ', '"a map made out of sushi." it is on a table'),
        ("“Hello”, said the fox – quietly…", '"hello", said the fox - quietly…'),
        ("A cat&amp;dog, 50% off! c++ <b>bold</b> text", "a cat dog, 50% off! c bold text"),
        ("time is 3:45 : morning", "time is 3:45: morning"),
        ("a red,green,blue flag.and a dog", "a red, green, blue flag. and a dog"),
        ("a state-of-the-art, well-lit house_with_garden", "a state of the art, well lit house with garden"),
        ("a well-lit, two-story house", "a well-lit, two-story house"),
        ("'quoted prompt'", "quoted prompt"),
        ("-- a dash first", "a dash first"),
        ("a 1.5 l bottle (full) of coca/cola", "a 1.5 l bottle full of coca cola"),
        ("see photo.jpg by @someone #12", "see by"),
        ("x < 3 and y > 2", "x < 3 and y > 2"),
        ("naïve café, 日本 sushi", "naïve café, sushi"),
        ("  lots   of\n space ... here", "lots of space here"),
        ("a%20red+car", "a red car"),
        ("A red，blue ﬂag", "a red, blue flag"),
        ("Ｌｏｕｄ　ｎｏｉｓｅ", "loud noise"),
        ("a jpg image of a cat", "a of a cat"),
        ("jc6640vc shoe, 512x512", "shoe"),
        (".gitignore", ""),
        ("pdfs of an eps image", "s of an"),
        ("3 blocks <script>alert(1)</script>of AT&T", "3 blocks of att"),
        ("", ""),
    ],
)
def test_clean_caption(caption: str, cleaned: str):
    assert clean_caption(caption) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_clean_caption_drops_addresses():
    assert clean_caption("A cat, see https://example.org/a?b=1 or www.example.net") == "a cat, see ?b=1 or"


# ---- features on disk


class Counting:
    """An encoder whose features identify the caption: its length and the code of each letter."""

    name, width = "counting", 2

    def __init__(self):
        self.read: list[str] = []

    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        self.read += captions
        return [torch.tensor([[len(c), ord(letter)] for letter in c or "\0"]).float() for c in captions]


def test_features_come_back(tmp_path: Path):
    reader, captions = Counting(), ["a cat", "birds", "", "a red dog", "a cat", "日本"]
    cached = cache_features(captions, "counting", lambda: reader, tmp_path / "cache")
    assert isinstance(cached, TextEncoder)
    assert (cached.name, cached.width) == ("counting", 2)
    assert sorted(reader.read) == sorted(set(captions))  # each once
    for asked in (captions, captions[::-1], ["birds"], []):
        for rows, expected in zip(cached.encode(asked), Counting().encode(asked), strict=True):
            assert rows.dtype == torch.float32
            assert torch.equal(rows, expected.half().float())
    tokens = sum(max(len(c), 1) for c in set(captions))
    assert (cached.folder / "features.f16").stat().st_size == tokens * 2 * 2  # no padding is stored


def test_features_are_made_once(tmp_path: Path):
    first = cache_features(["a", "b", "b"], "counting", Counting, tmp_path)

    def fail() -> TextEncoder:
        raise AssertionError("the encoder is not needed")

    again = cache_features(["b", "a"], "counting", fail, tmp_path)
    assert again.folder == first.folder
    assert torch.equal(again.encode(["b"])[0], first.encode(["b"])[0])
    for captions, name in (
        (["a", "b", "c"], "counting"),
        (["a"], "counting"),
        (["a", "b"], "other"),
        (["a", "b"], "counting/"),
    ):
        assert cache_features(captions, name, Counting, tmp_path).folder != first.folder
    # An encoder that reads fewer tokens has other features.
    assert cache_features(["a", "b"], "counting", Counting, tmp_path, longest=3).folder != first.folder
    assert torch.equal(CachedReader(first.folder).encode(["a"])[0], first.encode(["a"])[0])


def test_another_encoder_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder, caches = tmp_path / "t5", tmp_path / "caches"
    encoder.mkdir()
    (encoder / "model.safetensors").write_bytes(b"first")
    first = cache_features(["a"], str(encoder), Counting, caches)
    assert cache_features(["a"], str(encoder), Counting, caches).folder == first.folder
    monkeypatch.chdir(tmp_path)
    same = cache_features(["a"], "t5", Counting, caches)
    assert same.folder.name.removeprefix("t5-") == first.folder.name[-16:]
    (encoder / "model.safetensors").write_bytes(b"the second")
    second = cache_features(["a"], "t5", Counting, caches)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "t5").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    third = cache_features(["a"], "t5", Counting, caches)
    assert len({same.folder, second.folder, third.folder}) == 3


def test_progress_and_release(tmp_path: Path):
    made: list[weakref.ref] = []
    told: list[tuple[int, int]] = []

    def make() -> TextEncoder:
        reader = Counting()
        made.append(weakref.ref(reader))
        return reader

    cache_features([f"caption {i}" for i in range(600)], "counting", make, tmp_path, lambda *done: told.append(done))
    assert told == [(256, 600), (512, 600), (600, 600)]
    gc.collect()
    assert made[0]() is None


def test_an_interrupted_cache_is_made_anew(tmp_path: Path):
    captions = [f"caption {i}" for i in range(600)]

    def stop(done: int, _: int) -> None:
        if done > 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_features(captions, "counting", Counting, tmp_path, stop)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    reader = Counting()
    folder = cache_features(captions, "counting", lambda: reader, tmp_path).folder
    assert len(reader.read) == 600
    # A killed process cannot clean up; its unfinished folder is not used as a cache.
    partial = folder.rename(staging(folder))
    (partial / "captions.json").unlink()
    assert torch.equal(
        cache_features(captions, "counting", Counting, tmp_path).encode(["caption 7"])[0],
        Counting().encode(["caption 7"])[0],
    )
    assert not partial.exists()


def test_wrong_caches(tmp_path: Path):
    cached = cache_features(["a cat", "a dog"], "counting", Counting, tmp_path)
    with bad_input("prompts", "'a bird'", "2 captions", str(cached.folder)):
        cached.encode(["a cat", "a bird"])
    with (cached.folder / "features.f16").open("ab") as file:
        file.write(b"\0\0")
    with bad_input("text_encoder", str(cached.folder), "features.f16", "remove"):
        cache_features(["a cat", "a dog"], "counting", Counting, tmp_path)
    with bad_input("text_encoder", str(tmp_path / "none")):
        CachedReader(tmp_path / "none")

    class Large(Counting):
        def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
            return [1e6 * rows for rows in super().encode(captions)]

    with bad_input("text_encoder", "large"):
        cache_features(["a"], "large", Large, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and "large" in path.name]


def test_cached_t5(t5_folder: Path, tmp_path: Path):
    name = str(t5_folder)
    cached = cache_features(CAPTIONS, name, lambda: load_text_encoder(name), tmp_path)
    for rows, expected in zip(cached.encode(CAPTIONS), T5Reader(name).encode(CAPTIONS), strict=True):
        torch.testing.assert_close(rows, expected, rtol=2**-10, atol=2e-6)  # half precision has an 11-bit mantissa
