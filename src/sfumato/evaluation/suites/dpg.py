"""DPG-Bench (Hu et al. 2024, ELLA, arXiv 2403.05135): questions about everything that a dense prompt describes. The
rules are those of the authors' `dpg_bench/compute_dpg_bench.py`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.prompts import Prompt, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE, VQA
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.suites.drawbench import asked, check_counts
from sfumato.evaluation.targets import Drawing, Target
from sfumato.files import write_text
from sfumato.policy import Generator
from sfumato.request import Words
from sfumato.rewards.yes_no import Answer, load_answer

SOURCE = "https://github.com/TencentQQGYLab/ELLA/blob/main/dpg_bench/dpg_bench.csv"
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
"""Columns of the published table that are read, besides the prompt's "text"."""


@dataclass(frozen=True)
class Question:
    """A question about an image, with yes as the right answer."""

    number: int
    """number within its prompt, from 1"""
    text: str
    category: str
    """entity, attribute, relation, global or other"""
    needs: tuple[int, ...]
    """numbers of the questions without whose yes it counts as no"""


@dataclass(frozen=True)
class Item:
    """A prompt with its questions."""

    prompt: Prompt
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class DPG:
    """Questions of DPG-Bench about dense prompts, answered by a vision-language model. Existing images must be in the
    order of the prompts."""

    prompts: str | None = field(default=None, metadata=FILE)
    """the published dpg_bench.csv, or a table with its columns"""
    per_prompt: int = 4
    """number of images per prompt"""
    first: int = 0
    """number of prompts to use, from the first; 0 for all"""
    vqa: str = field(default="Qwen/Qwen2.5-VL-3B-Instruct", metadata=VQA)
    """model that answers: hub id or folder; with an endpoint, its name on the server; or path/to/file.py:function"""
    endpoint: str | None = None
    """address, up to /v1, of an OpenAI-compatible server; the model runs in this process if not given"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.prompts is None:
            raise UserError(f"prompts: no file is given; download {SOURCE} and give its path")
        check_counts(self.first, self.per_prompt)
        items = read_items(self.prompts)[: self.first or None]
        answer = load_answer(self.vqa, self.endpoint, device)
        return lambda target: self.measure(target, items, answer)

    def measure(self, target: Target, items: Sequence[Item], answer: Answer) -> Measurement:
        """Return the score of DPG-Bench, 0 to 1, and the share of yes by category; `dpg.jsonl` in the target's folder
        lists the answers for each image."""
        prompts = [item.prompt for item in items]

        def ask(generator: Generator) -> Words:
            return ask_prompts(generator, prompts).repeat(self.per_prompt)

        images = target.images(self.drawing, ask)
        asked(target, images, prompts, self.per_prompt)
        lines, scores, by_category = [], [], {}
        for batch, _ in batches(images, self.drawing.batch_size):
            for image in batch:
                item = items[len(scores) // self.per_prompt]
                said = answer(image, [question.text for question in item.questions])
                yes = [probability > 0.5 for probability in said]
                scores.append(score(item.questions, yes))
                for question, right in zip(item.questions, yes, strict=True):
                    by_category.setdefault(question.category, []).append(float(right))
                lines.append(json.dumps({"prompt": item.prompt.caption, "score": scores[-1], "yes": yes}) + "\n")
        write_text(target.folder / "dpg.jsonl", "".join(lines))
        shares = {category: Figure.mean(by_category[category]) for category in sorted(by_category)}
        return {"DPG-Bench": Figure.mean(scores), **shares}


def score(questions: Sequence[Question], yes: Sequence[bool]) -> float:
    """Return the share of questions that count as yes. One that needs another counts only if that one counts too; as in
    the authors' code, a question that was taken back takes back only those after it."""
    counts = {question.number: right for question, right in zip(questions, yes, strict=True)}
    for question in questions:
        counts[question.number] &= all(counts[number] for number in question.needs)
    return sum(counts.values()) / len(counts)


def read_items(path: str) -> list[Item]:
    """Read a table like `dpg_bench.csv`, one row per question, in which the rows of a prompt follow one another.

    Raises:
        UserError: the file cannot be read, lacks a column, or a row names no number or an unknown question.
    """
    rows: dict[str, list[Prompt]] = {}
    for row in read_prompts(path):
        missing = [name for name in COLUMNS if not isinstance(row.metadata.get(name), str)]
        if missing:
            raise UserError(f"prompts: {path} has no column {missing[0]}; give a table like {SOURCE}")
        rows.setdefault(str(row.metadata["item_id"]), []).append(row)
    return [read_item(path, name, part) for name, part in rows.items()]


def read_item(path: str, name: str, rows: Sequence[Prompt]) -> Item:
    """Return the prompt of some rows with its questions.

    Raises:
        UserError: a number is none, is given twice, or belongs to no question.
    """
    questions = [read_question(path, name, row.metadata) for row in rows]
    numbers = [question.number for question in questions]
    for question in questions:
        unknown = [number for number in question.needs if number not in numbers]
        if unknown:
            raise UserError(f"prompts: {path}, {name}: question {question.number} needs {unknown[0]}; add that one")
        if numbers.count(question.number) > 1:
            raise UserError(f"prompts: {path}, {name}: question {question.number} is there twice; remove one")
    return Item(Prompt(rows[0].caption), tuple(questions))


def read_question(path: str, name: str, row: Mapping[str, object]) -> Question:
    """Return the question of a row. Its category is the first word of its tuple, such as "attribute - color (...)"."""
    try:
        number, needs = int(str(row["proposition_id"])), [int(part) for part in str(row["dependency"]).split(",")]
    except ValueError:
        raise UserError(
            f"prompts: {path}, {name}: proposition_id {row['proposition_id']!r} or dependency {row['dependency']!r} is "
            "not a number; download the table again"
        ) from None
    category = str(row["tuple"]).split("(")[0].split("-")[0].strip()
    return Question(number, str(row["question_natural_language"]), category, tuple(n for n in needs if n))
