"""DPG-Bench: the rule of dependent questions by hand, the published table's format, and the suite end to end."""

import csv
import json
from pathlib import Path

import pytest
import torch
from errors import bad_input

from sfumato.cli.main import main
from sfumato.evaluation.image_sets import write_image
from sfumato.evaluation.measurement import read_measurement
from sfumato.evaluation.suites.dpg import Question, read_items, score

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = [
    ("partiprompts1", "a red dog, near a cat", 1, "0", "entity - whole (dog)", "Is there a dog?"),
    ("partiprompts1", "a red dog, near a cat", 2, "1", "attribute - color (dog, red)", "Is the dog red?"),
    ("partiprompts1", "a red dog, near a cat", 3, "0", "entity - whole (cat)", "Is there a cat?"),
    ("partiprompts1", "a red dog, near a cat", 4, "1, 3", "relation - spatial (dog, cat, near)", "Is the dog near it?"),
    ("COCOval2014000000001", "a blue sky", 1, "0", "entity - whole (sky)", "Is there a sky?"),
    ("COCOval2014000000001", "a blue sky", 2, "1", "attribute - color (sky, blue)", "Is the sky blue?"),
]


def write_table(path: Path, rows: list[tuple] = ROWS, header: str = HEADER) -> str:
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(
            (item, text, "", number, needs, "entity", "whole", parts, question)
            for item, text, number, needs, parts, question in rows
        )
    return str(path)


def question(number: int, *needs: int) -> Question:
    return Question(number, "?", "entity", needs)


@pytest.mark.parametrize(
    ("questions", "yes", "expected"),
    [
        ([question(1), question(2, 1)], [True, True], 1.0),
        ([question(1), question(2, 1)], [False, True], 0.0),  # the second does not count without the first
        ([question(1), question(2, 1)], [True, False], 0.5),
        ([question(1), question(2), question(3, 1, 2)], [True, False, True], 1 / 3),
        # A question that was taken back takes back the next one.
        ([question(1), question(2, 1), question(3, 2), question(4)], [False, True, True, True], 1 / 4),
        # ... but as in the authors' code, not one that comes earlier in the table.
        ([question(1), question(3, 2), question(2, 1), question(4)], [False, True, True, True], 2 / 4),
    ],
)
def test_questions_that_need_others(questions: list[Question], yes: list[bool], expected: float):
    assert score(questions, yes) == pytest.approx(expected)


def test_the_published_format(tmp_path: Path):
    first, second = read_items(write_table(tmp_path / "dpg_bench.csv"))
    assert first.prompt.caption == "a red dog, near a cat"
    assert [(q.number, q.category, q.needs) for q in first.questions] == [
        (1, "entity", ()),
        (2, "attribute", (1,)),
        (3, "entity", ()),
        (4, "relation", (1, 3)),
    ]
    assert second.questions[1].text == "Is the sky blue?"


@pytest.mark.parametrize(
    ("row", "pieces"),
    [
        (("a", "a dog", "one", "0", "entity (dog)", "?"), ["'one'", "'0'"]),
        (("a", "a dog", 1, "", "entity (dog)", "?"), ["'1'", "''"]),
        (("a", "a dog", 2, "1", "entity (dog)", "?"), ["a: question 2", " 1;"]),
    ],
)
def test_wrong_rows(tmp_path: Path, row: tuple, pieces: list[str]):
    with bad_input("prompts", "dpg.csv", *pieces):
        read_items(write_table(tmp_path / "dpg.csv", [row]))


def test_wrong_tables(tmp_path: Path):
    with bad_input("prompts", "dpg.csv", "item_id", "https://github.com/TencentQQGYLab/ELLA"):
        read_items(write_table(tmp_path / "dpg.csv", header=HEADER.replace("item_id", "item")))
    with bad_input("prompts", "dpg.csv", "question 1", "twice"):
        read_items(write_table(tmp_path / "dpg.csv", [ROWS[0], ROWS[0]]))


def test_the_score_of_images(tmp_path: Path):
    """A stand-in that says yes to a question about a word if the image's channel for that word is bright."""
    (tmp_path / "vqa.py").write_text(
        "WORDS = {'dog?': 0, 'red?': 1, 'cat?': 2, 'it?': 2, 'sky?': 0, 'blue?': 1}\n"
        "def answer(image, questions):\n"
        "    return [float(image[WORDS[question.split()[-1]]].mean()) for question in questions]\n"
    )
    colors = [(1, 1, 1), (0, 1, 1), (1, 0.4, 0), (0, 1, 0)]
    for number, color in enumerate(colors):
        write_image(tmp_path / f"images/{number}.png", torch.tensor(color).float()[:, None, None].expand(3, 4, 4))
    command = ["evaluate", str(tmp_path / "images"), "--suite", "dpg", "--vqa", f"{tmp_path / 'vqa.py'}:answer"]
    command += ["--prompts", write_table(tmp_path / "dpg.csv"), "--per-prompt", "2", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found = read_measurement(tmp_path / "out/images/measurement.json")
    # All four; only the cat (no dog: its color and the relation do not count); the sky, but not blue; nothing.
    assert found["DPG-Bench"].parts == (1.0, 0.25, 0.5, 0.0)
    # The categories count every yes: entities 2 + 1 + 1 + 0 of 2 + 2 + 1 + 1.
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {"DPG-Bench": 1.75 / 4, "attribute": 3 / 4, "entity": 4 / 6, "relation": 1.0}
    )
    lines = [json.loads(line) for line in (tmp_path / "out/images/dpg.jsonl").read_text().splitlines()]
    assert lines[1] == {"prompt": "a red dog, near a cat", "score": 0.25, "yes": [False, True, True, True]}


def test_a_bundled_model(tmp_path: Path):
    (tmp_path / "vqa.py").write_text("def answer(image, questions):\n    return [1.0] + [0.0] * (len(questions) - 1)\n")
    command = ["evaluate", "emoji-infinity", "--suite", "dpg", "--vqa", f"{tmp_path / 'vqa.py'}:answer"]
    command += [
        "--per-prompt",
        "1",
        "--prompts",
        write_table(tmp_path / "dpg.csv"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    found = read_measurement(tmp_path / "out/emoji-infinity/measurement.json")
    assert found["DPG-Bench"].parts == (1 / 4, 1 / 2)
    assert len(list((tmp_path / "out/emoji-infinity/images").glob("*.png"))) == 2
