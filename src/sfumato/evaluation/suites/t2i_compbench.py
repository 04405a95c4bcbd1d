"""Six tasks of T2I-CompBench (Huang et al. 2023, arXiv 2307.06350): attributes, relations, and both together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.prompts import Prompt
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.compbench_scoring import (
    SIDE,
    attributes,
    complex_objects,
    questions_of,
    relation_of,
    simple_objects,
    spatial,
    without_adjectives,
)
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE, VQA
from sfumato.evaluation.noun_phrases import Parsed, load_parser
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.suites.drawbench import asked, first_prompts
from sfumato.evaluation.targets import Drawing, Target
from sfumato.files import write_text
from sfumato.policy import Generator
from sfumato.request import Words
from sfumato.rewards.backbone import Clip, load_clip
from sfumato.rewards.open_detector import OWLV2, OpenDetector, load_open_detector
from sfumato.rewards.yes_no import Answer, load_answer

SOURCE = "https://github.com/Karine-Huang/T2I-CompBench/tree/main/examples/dataset"
Task = Literal["color", "shape", "texture", "spatial", "non_spatial", "complex"]
TASKS: tuple[Task, ...] = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
Part = Literal["attributes", "spatial", "clip"]
PARTS: dict[Task, tuple[Part, ...]] = {
    "color": ("attributes",),
    "shape": ("attributes",),
    "texture": ("attributes",),
    "spatial": ("spatial",),
    "non_spatial": ("clip",),
    "complex": ("attributes", "spatial", "clip"),
}
"""Scores whose mean is the score of an image; some captions of the task complex have only two of them."""


@dataclass(frozen=True)
class Item:
    """A caption and how its images are scored."""

    task: Task
    prompt: Prompt
    parts: tuple[Part, ...]
    parsed: Parsed


@dataclass(frozen=True)
class Networks:
    """What scores images; None where no task needs it."""

    answer: Answer | None
    detector: OpenDetector | None
    clip: Clip | None


@dataclass(frozen=True, kw_only=True)
class T2ICompBench:
    """Colors, shapes, textures, and relations of objects, by T2I-CompBench's prompts. Existing images must be in the
    order of the tasks and their prompts."""

    prompts: Path | None = None
    """folder with the published files color_val.txt, shape_val.txt, ..., complex_val_spatial.txt"""
    tasks: tuple[Task, ...] = TASKS
    """tasks to measure"""
    per_prompt: int = 10
    """number of images per prompt"""
    first: int = 0
    """number of prompts of each task to use, from the first; 0 for all"""
    vqa: str = field(default="Salesforce/blip-vqa-capfilt-large", metadata=VQA)
    """model that answers about attributes: hub id or folder of BLIP's VQA model or another vision-language model; with
    an endpoint, its name on the server; or path/to/file.py:function"""
    endpoint: str | None = None
    """address, up to /v1, of an OpenAI-compatible server; the model runs in this process if not given"""
    detector: str = field(default=OWLV2, metadata=FILE)
    """OWLv2, which finds objects: hub id or folder"""
    clip: str = field(default="openai/clip-vit-base-patch32", metadata=FILE)
    """CLIP model: hub id or folder"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.prompts is None:
            raise UserError(f"prompts: no folder is given; download {SOURCE} and give its path")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks: {self.tasks} is empty or repeats a task; give each once")
        captions = {task: read_task(self.prompts, task, self.first, self.per_prompt) for task in self.tasks}
        parse = load_parser()
        items = [
            Item(task, prompt, parts, parse(prompt.caption)) for task in self.tasks for prompt, parts in captions[task]
        ]
        needed = {part for item in items for part in item.parts}
        networks = Networks(
            load_answer(self.vqa, self.endpoint, device) if "attributes" in needed else None,
            load_open_detector(self.detector, device) if "spatial" in needed else None,
            load_clip(self.clip) if "clip" in needed else None,
        )
        return lambda target: self.measure(target, items, networks)

    def measure(self, target: Target, items: Sequence[Item], networks: Networks) -> Measurement:
        """Return the mean score of each task; `t2i-compbench.jsonl` in the target's folder lists the scores of each
        image."""
        prompts = [item.prompt for item in items]

        def ask(generator: Generator) -> Words:
            return ask_prompts(generator, prompts).repeat(self.per_prompt)

        images = target.images(self.drawing, ask)
        asked(target, images, prompts, self.per_prompt)
        lines, by_task = [], {}
        for batch, _ in batches(images, self.drawing.batch_size):
            for image in batch.to(target.device):
                item = items[len(lines) // self.per_prompt]
                scores = {part: score_part(part, item, image, networks) for part in item.parts}
                by_task.setdefault(item.task, []).append(sum(scores.values()) / len(scores))
                lines.append(json.dumps({"task": item.task, "prompt": item.prompt.caption, **scores}) + "\n")
        write_text(target.folder / "t2i-compbench.jsonl", "".join(lines))
        return {task: Figure.mean(scores) for task, scores in by_task.items()}


def score_part(part: Part, item: Item, image: Float[Tensor, "3 H W"], networks: Networks) -> float:
    """Return one of the scores of an image."""
    if part == "attributes":
        assert networks.answer is not None
        questions = questions_of(item.parsed)
        return attributes(networks.answer(image, questions) if questions else [])
    if part == "clip":
        assert networks.clip is not None
        caption = without_adjectives(item.parsed) if item.task == "complex" else item.prompt.caption
        return networks.clip.cosines(image[None], [caption]).item()
    assert networks.detector is not None
    wanted = complex_objects(item.parsed) if item.task == "complex" else simple_objects(item.parsed)
    objects = networks.detector.detect(image, list(dict.fromkeys(wanted))) if wanted else {}
    scale = SIDE / min(image.shape[1:])
    sized = {name: [found.scaled(scale) for found in each] for name, each in objects.items()}
    return spatial(relation_of(item.prompt.caption), wanted, sized)


def read_task(folder: Path, task: Task, first: int, per_prompt: int) -> list[tuple[Prompt, tuple[Part, ...]]]:
    """Return the captions of a task with the scores that apply to their images.

    Raises:
        UserError: a file is missing.
    """

    def read(name: str, count: int) -> list[Prompt]:
        if not (folder / name).is_file():
            raise UserError(f"prompts: {folder} has no {name}; download the folder {SOURCE}")
        return first_prompts(str(folder / name), count, per_prompt)

    prompts = read(f"{task}_val.txt", first)
    if task != "complex":
        return [(prompt, PARTS[task]) for prompt in prompts]
    without_clip, without_spatial = (
        {plain(prompt.caption) for prompt in read(f"complex_val_{name}.txt", 0)} for name in ("spatial", "action")
    )

    def parts(caption: str) -> tuple[Part, ...]:
        if plain(caption) in without_clip:
            return ("attributes", "spatial")
        return ("attributes", "clip") if plain(caption) in without_spatial else PARTS["complex"]

    return [(prompt, parts(prompt.caption)) for prompt in prompts]


def plain(caption: str) -> str:
    """Return a caption as the lists of the task complex are searched: its first sentence in lower case."""
    return caption.split(".")[0].lower()
