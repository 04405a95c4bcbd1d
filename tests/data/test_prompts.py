"""Files of prompts, and the sampler of prompts."""

import json
from pathlib import Path

import pytest
import torch
from errors import bad_input

from sfumato.data.classes import WordsSampler
from sfumato.data.prompts import Prompt, PromptSampler, looks_like_file, prompt_words, read_prompts


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
    path.write_bytes("\ufeffa cat\r\na dog\r\n".encode())  # as saved by some editors
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
    ("name", "text", "pieces"),
    [
        ("p.md", "a cat", (".txt", ".jsonl", ".json", ".csv")),
        ("p.txt", "", ()),
        ("p.txt", "# a cat\n\n", ()),
        ("p.jsonl", "\n", ()),
        ("p.json", "[]", ()),
        ("p.csv", "caption\n", ()),
        ("p.jsonl", '"a"\n{"b"\n', ("line 2", "JSON", "':' delimiter")),
        ("p.json", '["a",\n"b"\n"c"]', ("line 3", "JSON", "',' delimiter")),
        ("p.json", '{"images": []}', ('{"annotations": [...]}',)),
        ("p.json", "5", ("list",)),
        ("p.csv", "id,name\n1,a\n", ("line 1", "'caption', 'prompt', 'text' or 'prompts'", "header")),
        ("p.csv", "", ("line 1", "header")),
        ("p.csv", "text,id\na cat, a dog,1\n", ("line 2", "3 columns", "2")),
        ("p.csv", 'text\n"a"\n"b\n', ("line 3", "CSV", "quotes")),
        ("p.csv", "text,id\na,1\n ,2\n", ("line 3", "empty")),
        ("p.jsonl", '"a"\n""\n', ("line 2", "empty")),
        ("p.json", '["a", {"caption": " "}]', ("item 2", "empty")),
        ("p.jsonl", '"a"\n\n{"name": "a"}', ("line 3", "'caption', 'prompt', 'text' or")),
        ("p.jsonl", '{"text": 5}', ("line 1", "5", "string")),
        ("p.csv", "text,id, text\na,1,b\n", ("line 1", "'text'")),
        ("p.jsonl", '"a"\n"b \\ud83d"', ("line 2", "surrogate")),
        ("p.jsonl", "null", ("line 1", "null", "string")),
        ("p.json", '[["a"]]', ("item 1", '["a"]', "string")),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str, text: str, pieces: tuple[str, ...]):
    path = write(tmp_path, name, text)
    with bad_input("prompts", str(path), *pieces):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "Prompt,id\na; b,1\n"),
        ("p.csv", "id;Caption\n1;a; b\n".replace("a; b", '"a; b"')),
        ("p.csv", "id\tTEXT\n1\ta; b\n"),
        ("p.tsv", "id\tprompt\n1\ta; b\n"),
        ("p.tsv", "Prompt\na; b\n"),
        ("p.CSV", "PROMPTS\na; b\n"),
        ("p.jsonl", '{"Prompt": "a; b"}\n'),
    ],
)
def test_tables_and_keys_as_people_have_them(tmp_path: Path, name: str, text: str):
    (prompt,) = read_prompts(write(tmp_path, name, text))
    assert prompt.caption == "a; b"
    assert dict(prompt.metadata) in ({"id": "1"}, {})


@pytest.mark.parametrize("text", ["caps.tx", "caps.txt", "my/caps", "caps.jsn", "C:\\caps", "./red", "caps.jsonl"])
def test_what_looks_like_a_file(text: str):
    assert looks_like_file(text)


@pytest.mark.parametrize(
    "text", ["apple", "a cat/dog", "red apple.", "St.Paul", "U.S.A.", "see caps.txt", ".NET", "v1.5"]
)
def test_what_is_a_caption(text: str):
    assert not looks_like_file(text)


def test_missing_and_undecodable_files(tmp_path: Path):
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / ("long" * 100)):
        with bad_input("prompts", str(path), ".txt, .jsonl, .json, .csv, .tsv"):
            read_prompts(path)
    path = tmp_path / "p.txt"
    path.write_bytes("a cat\na caf\xe9\n".encode("latin-1"))
    with bad_input("prompts", str(path), "line 2", "UTF-8"):
        read_prompts(path)


PROMPTS = [
    Prompt("a cat", {"n": 0}),
    Prompt("one red dog", {"n": 1}),
    Prompt("birds", {"n": 2}),
    Prompt("a cat", {"n": 3}),
]


def test_words_of_prompts():
    words = prompt_words(PROMPTS[:2])
    assert words.names == words.captions == ("a cat", "one red dog")
    assert words.metadata == ({"n": 0}, {"n": 1})
    assert words.labels.tolist() == [-1, -1]  # a caption is not a class


def test_sampler():
    sampler, rng = PromptSampler(PROMPTS), torch.Generator().manual_seed(0)
    assert isinstance(sampler, WordsSampler)
    words = sampler.next(4, rng)
    assert sorted(metadata["n"] for metadata in words.metadata) == [0, 1, 2, 3]  # pyright: ignore
    for caption, metadata in zip(words.captions, words.metadata, strict=True):
        assert Prompt(caption, metadata) in PROMPTS
    assert words.names == words.captions
    # More than there are, so each prompt appears two or three times.
    counts = torch.bincount(torch.tensor([metadata["n"] for metadata in sampler.next(10, rng).metadata]))
    assert (counts.min(), counts.max()) == (2, 3)


def test_spread_over_the_file():
    sampler = PromptSampler(PROMPTS)
    assert sampler.spread(2).metadata == ({"n": 0}, {"n": 3})
    assert sampler.spread(2).captions == ("a cat", "a cat")
    assert sampler.spread(4).captions == tuple(prompt.caption for prompt in PROMPTS)


def test_sampler_draws_uniformly_and_again():
    def draw(seed: int) -> list[object]:
        sampler, rng = PromptSampler(PROMPTS), torch.Generator().manual_seed(seed)
        return [metadata["n"] for _ in range(200) for metadata in sampler.next(2, rng).metadata]

    counts = torch.bincount(torch.tensor(draw(0)), minlength=4)
    assert ((counts - 100).square() / 100).sum() < 16.3  # 3 degrees of freedom, p = 0.001
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampler_of_nothing():
    with bad_input("prompts"):
        PromptSampler([])
