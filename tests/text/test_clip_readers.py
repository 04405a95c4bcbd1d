"""Captions read by two CLIP models, as for Switti, and their cache."""

from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny_transformers import save_clip

from sfumato.request import CaptionFeatures, TextInputs
from sfumato.text.cache import CachedReader
from sfumato.text.encoders import CLIPReaders, TextEncoder, load_text_encoder
from sfumato.text.reader import CaptionReader

CAPTIONS = ["a red pear", "", "an owl", "!" * 40]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Save two CLIP models with random weights: a whole one, and the text half of a wider one."""
    transformers = pytest.importorskip("transformers")
    first, second = tmp_path_factory.mktemp("clip-small"), tmp_path_factory.mktemp("clip-wide")
    save_clip(first)
    transformers.AutoTokenizer.from_pretrained(first).save_pretrained(second)
    config = transformers.CLIPModel.from_pretrained(first).config.text_config
    config.hidden_size = 96
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.CLIPTextModel(config).save_pretrained(second)
    return first, second


@torch.no_grad()
def test_features_are_those_of_transformers(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    """Compare with the published steps: pad to the full length, and put the last hidden states side by side."""
    from transformers import AutoTokenizer, CLIPTextModel

    reader = load_text_encoder(f"{folders[0]}+{folders[1]}", longest=77)
    assert isinstance(reader, CLIPReaders)
    assert isinstance(reader, TextEncoder)
    assert reader.width == 64 + 96
    features = reader.encode(CAPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    batch = tokenizer(CAPTIONS, truncation=True, max_length=16, padding="max_length", return_tensors="pt")
    outputs = [CLIPTextModel.from_pretrained(folder).eval()(**batch) for folder in folders]
    expected = torch.cat([output.last_hidden_state for output in outputs], dim=-1)
    lengths = batch.attention_mask.sum(1).tolist()
    assert [len(rows) for rows in features] == lengths
    assert (lengths[1], lengths[3]) == (2, 16)
    for rows, row, length in zip(features, expected, lengths, strict=True):
        torch.testing.assert_close(rows, row[:length], rtol=0, atol=1e-5)
    # The pooled output is the last token's; here, of the second model.
    pooled = CaptionFeatures.padded(features).features[:, -1, -96:]
    torch.testing.assert_close(pooled, outputs[1].pooler_output, rtol=0, atol=1e-5)
    assert "captions are cut after 16 tokens" in capsys.readouterr().err


def test_a_caption_is_read_alike_in_any_batch(folders: tuple[Path, Path]):
    together = CLIPReaders([str(folder) for folder in folders]).encode(CAPTIONS)
    by_two = CLIPReaders([str(folder) for folder in folders], batch_size=2).encode(CAPTIONS)
    for one, other in zip(together, by_two, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_empty_caption_is_always_read_and_cached(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reader = CaptionReader(f"{folders[0]}+{folders[1]}", longest=16, width=160, null="")
    direct = reader.read(["an owl", "a pear", "an owl"])
    assert (direct.rows.tolist(), direct.null_row, len(direct.captions)) == ([0, 1, 0], 2, 3)
    reader.prepare(["an owl", "a pear"], tmp_path)
    assert isinstance(reader._loaded, CachedReader)
    monkeypatch.setattr("sfumato.text.reader.load_text_encoder", lambda *_: pytest.fail("read from disk"))
    cached = reader.read(["an owl", "a pear", "an owl"])
    assert cached.null_row == 2
    torch.testing.assert_close(cached.captions.features, direct.captions.features, rtol=1e-3, atol=1e-3)
    again = CaptionReader(reader.encoder, longest=16, width=160, null="")
    again.prepare(["a pear", "an owl"], tmp_path)  # not read again, and with the same name
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert reader.read([""]).rows.tolist() == [0]
    with bad_input("prompts", "'another'"):
        reader.read(["another"])


def test_the_empty_caption_moves_along():
    table = CaptionFeatures.padded([torch.full((1, 2), float(number)) for number in range(4)])
    inputs = TextInputs(rows=torch.tensor([3, 1, 1]), captions=table, null_row=2)
    assert inputs[1:].null_row == 2
    assert inputs.drop(torch.tensor([True, False, False])).null_row == 2
    moved = inputs[1:].to("meta")
    assert (len(moved.captions), moved.null_row) == (2, 1)
    assert TextInputs(rows=inputs.rows, captions=table).to("meta").null_row is None


def test_errors(folders: tuple[Path, Path], tmp_path: Path):
    from transformers import AutoConfig, AutoTokenizer

    with bad_input("text_encoder", "'nobody'"):
        load_text_encoder(f"{folders[0]}+nobody")
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with bad_input("text_encoder", "CLIP", "t5"):
        load_text_encoder(f"{folders[0]}+{tmp_path}")
    other = tmp_path / "other"
    save_clip(other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["owl"])
    tokenizer.save_pretrained(other)
    with bad_input("text_encoder", str(other), "vocabularies"):
        load_text_encoder(f"{folders[0]}+{other}")
