"""Files of prompts, and the sampler of prompts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sfumato.data.classes import ConditionSampler
from sfumato.data.prompts import Prompt, PromptSampler, read_prompts


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_text(tmp_path: Path):
    path = write(
        tmp_path, "p.txt", "# animals\na  red cat \n\n \n  # indented\na dog, #1 of two\na naïve 猫\na  red cat"
    )
    captions = ["a red cat", "a dog, #1 of two", "a naïve 猫", "a red cat"]
    assert read_prompts(path) == [Prompt(caption) for caption in captions]
    assert read_prompts(path)[0].metadata == {}
    path.write_bytes("\ufeffa cat\r\na dog\r\n".encode())  # as some editors save it
    assert [p.caption for p in read_prompts(str(path))] == ["a cat", "a dog"]


def test_objects_a_line(tmp_path: Path):
    path = write(
        tmp_path,
        "p.jsonl",
        '{"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}\n'
        '"a bare string"\n\n{"text": "a dog", "score": 0.5}\n{"text": "unused", "caption": "a bird"}\n',
    )
    assert read_prompts(path) == [
        Prompt("two cats", {"tag": "counting", "include": [{"class": "cat", "count": 2}]}),
        Prompt("a bare string"),
        Prompt("a dog", {"score": 0.5}),
        Prompt("a bird", {"text": "unused"}),
    ]


def test_json(tmp_path: Path):
    items = [{"image_id": 9, "id": 1, "caption": "A man\nwith a hat."}, {"image_id": 9, "id": 2, "caption": "A hat"}]
    expected = [Prompt("A man with a hat.", {"image_id": 9, "id": 1}), Prompt("A hat", {"image_id": 9, "id": 2})]
    path = write(tmp_path, "captions_val2014.json", json.dumps({"info": {}, "annotations": items}))
    assert read_prompts(path) == expected
    path.write_text(json.dumps([*items, "a string"]))
    assert read_prompts(path) == [*expected, Prompt("a string")]


def test_csv(tmp_path: Path):
    path = write(
        tmp_path, "p.CSV", 'Category, prompt \nanimals,"a cat, a dog"\n\nfood,"a pie ""à la mode"""\n,"two\nlines"\n'
    )
    assert read_prompts(path) == [
        Prompt("a cat, a dog", {"Category": "animals"}),
        Prompt('a pie "à la mode"', {"Category": "food"}),
        Prompt("two lines", {"Category": ""}),
    ]


def test_table_of_drawbench(tmp_path: Path):
    path = write(tmp_path, "drawbench.csv", "Prompts,Category\nA cube made of brick.,DALL-E\n")
    assert read_prompts(path) == [Prompt("A cube made of brick.", {"Category": "DALL-E"})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.md", "a cat", r"p\.md is of no known kind; give a file that ends in \.txt, \.jsonl, \.json, \.csv"),
        ("p.txt", "", r"p\.txt has no captions; write at least one"),
        ("p.txt", "# a cat\n\n", r"p\.txt has no captions; write at least one"),
        ("p.jsonl", "\n", r"p\.jsonl has no captions"),
        ("p.json", "[]", r"p\.json has no captions"),
        ("p.csv", "caption\n", r"p\.csv has no captions"),
        ("p.jsonl", '"a"\n{"b"\n', r"p\.jsonl, line 2: this is no JSON \(Expecting ':' delimiter\); write one object"),
        ("p.json", '["a",\n"b"\n"c"]', r"p\.json, line 3: this is no JSON \(Expecting ',' delimiter\); mend it"),
        ("p.json", '{"images": []}', r'p\.json has no list of captions; give a list, or {"annotations": \[\.\.\.\]}'),
        ("p.json", "5", r"p\.json has no list of captions"),
        (
            "p.csv",
            "id,name\n1,a\n",
            r"p\.csv, line 1: no column is called 'caption', 'prompt', 'text' or 'Prompts'; add a header",
        ),
        ("p.csv", "", r"p\.csv, line 1: no column is called"),
        ("p.csv", "text,id\na cat, a dog,1\n", r"p\.csv, line 2: 3 columns where the header has 2; put captions with"),
        ("p.csv", 'text\n"a"\n"b\n', r"p\.csv, line 3: this is no CSV \(unexpected end of data\); mend its quotes"),
        ("p.csv", "text,id\na,1\n ,2\n", r"p\.csv, line 3: the caption is empty; write one or remove the line"),
        ("p.jsonl", '"a"\n""\n', r"p\.jsonl, line 2: the caption is empty"),
        ("p.json", '["a", {"caption": " "}]', r"p\.json, item 2: the caption is empty"),
        (
            "p.jsonl",
            '"a"\n\n{"name": "a"}',
            r"line 3: there is no caption; put it under 'caption', 'prompt', 'text' or",
        ),
        ("p.jsonl", '{"text": 5}', r"p\.jsonl, line 1: the caption is 5; write a string"),
        ("p.csv", "text,id, text\na,1,b\n", r"p\.csv, line 1: two columns are called 'text'; rename one"),
        ("p.jsonl", '"a"\n"b \\ud83d"', r"p\.jsonl, line 2: the caption has half of a character \(a lone surrogate\)"),
        ("p.jsonl", "null", r"p\.jsonl, line 1: the caption is null; write a string"),
        ("p.json", '[["a"]]', r'p\.json, item 1: the caption is \["a"\]; write a string'),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str, text: str, message: str):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=rf"^prompts: .*{message}") as error:
        read_prompts(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_and_undecodable_files(tmp_path: Path):
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(ValueError, match=r"^prompts: .* is not a file; give one of \.txt, \.jsonl, \.json, \.csv$"):
            read_prompts(path)
    path = tmp_path / "p.txt"
    path.write_bytes("a cat\na caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\.txt, line 2: this is not UTF-8; save the file as UTF-8"):
        read_prompts(path)


class Lengths:
    """An encoder that gives the n-th word the vector (length of the word, n), and counts what it reads."""

    def __init__(self):
        self.read: list[list[str]] = []

    def __call__(self, captions: Sequence[str]) -> list[torch.Tensor]:
        self.read.append(list(captions))
        return [torch.tensor([[len(w), n] for n, w in enumerate(c.split())]).float() for c in captions]


PROMPTS = [
    Prompt("a cat", {"n": 0}),
    Prompt("one red dog", {"n": 1}),
    Prompt("birds", {"n": 2}),
    Prompt("a cat", {"n": 3}),
]


def test_sampler():
    encode = Lengths()
    sampler, rng = PromptSampler(PROMPTS, encode, longest=2), torch.Generator().manual_seed(0)
    assert isinstance(sampler, ConditionSampler)
    assert encode.read == []  # nothing is read before it is asked for
    conditions = sampler.next(4, rng)
    assert sorted(metadata["n"] for metadata in conditions.metadata) == [0, 1, 2, 3]  # pyright: ignore
    for caption, metadata in zip(conditions.captions, conditions.metadata, strict=True):
        assert Prompt(caption, metadata) in PROMPTS
    assert sorted(encode.read[0]) == ["a cat", "birds", "one red dog"]  # equal captions are read once
    assert conditions.text is not None
    rows = {c: conditions.text.features[i] for c, i in zip(conditions.names, conditions.labels.tolist(), strict=True)}
    assert rows["a cat"].tolist() == [[1, 0], [3, 1]]
    assert rows["one red dog"].tolist() == [[3, 0], [3, 1]]  # cut off after two
    assert rows["birds"].tolist() == [[0, 0], [5, 0]]  # padded at the left
    assert conditions.text.mask[conditions.labels[conditions.names.index("birds")]].tolist() == [False, True]


def test_sampler_reads_the_batch_alone():
    encode = Lengths()
    sampler, rng = PromptSampler(PROMPTS, encode), torch.Generator().manual_seed(0)
    for _ in range(5):
        conditions = sampler.next(2, rng)
        assert encode.read[-1] == list(dict.fromkeys(conditions.captions))
    assert sampler.spread(2).metadata == ({"n": 0}, {"n": 3})
    assert sampler.spread(2).captions == ("a cat", "a cat")
    assert encode.read[-1] == ["a cat"]


def test_sampler_draws_uniformly_and_again():
    def draw(seed: int) -> list[object]:
        sampler, rng = PromptSampler(PROMPTS, Lengths()), torch.Generator().manual_seed(seed)
        return [metadata["n"] for _ in range(200) for metadata in sampler.next(2, rng).metadata]

    counts = torch.bincount(torch.tensor(draw(0)), minlength=4)
    assert ((counts - 100).square() / 100).sum() < 16.3  # 3 degrees of freedom, one in a thousand
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampler_of_nothing():
    with pytest.raises(ValueError, match="prompts: there are none to draw from; give at least one"):
        PromptSampler([], Lengths())
