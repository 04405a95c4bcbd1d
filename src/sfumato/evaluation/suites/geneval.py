"""GenEval's six tasks (Ghosh, Hajishirzi & Schmidt 2023), scored without mmdet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.data.prompts import Prompt, find_prompts, read_prompts
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.detector import CLIP, MASK2FORMER, OBJECTS, Detector, load_detector
from sfumato.evaluation.geneval import is_correct, keep, summary
from sfumato.evaluation.images import batches
from sfumato.evaluation.measurement import Figure, Measurement, write_text
from sfumato.evaluation.run import Measure
from sfumato.evaluation.suites.drawbench import asked
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """Whether the objects of a prompt are there: as many, of that colour, in that place."""

    prompts: str | None = None
    """GenEval's evaluation_metadata.jsonl, with "tag", "include" and "exclude" of every prompt"""
    per_prompt: int = 4
    """images a prompt"""
    first: int = 0
    """only so many prompts; 0 is all"""
    detector: str = MASK2FORMER
    """Mask2Former that tells COCO's 80 classes: hub id or folder"""
    clip: str = CLIP
    """CLIP that names colours: hub id or folder"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.prompts is None:
            raise ValueError("prompts: none are given; give GenEval's evaluation_metadata.jsonl")
        if self.per_prompt < 1:
            raise ValueError(f"per_prompt: {self.per_prompt} is too small; give at least 1")
        prompts = read_prompts(find_prompts(self.prompts))[: self.first or None]
        for prompt in prompts:
            check(prompt)
        detector = load_detector(self.detector, self.clip, device)
        return lambda target: self.measure(target, prompts, detector)

    def place(self, number: int) -> str:
        """Where GenEval's own code looks for an image."""
        return f"{number // self.per_prompt:05d}/samples/{number % self.per_prompt:04d}.png"

    def measure(self, target: Target, prompts: list[Prompt], detector: Detector) -> Measurement:
        """Shares of correct images by task and in all; `geneval.jsonl` in the target's folder says which."""

        def ask(generator: Generator, drawing: Drawing) -> Conditions:
            return ask_prompts(generator, drawing, prompts).repeat(self.per_prompt)

        images = target.images(self.drawing, ask, self.place)
        conditions = asked(target, images, prompts, self.per_prompt)
        if not target.has_images:
            write_metadata(target.folder / "images", prompts)
        lines, tags, correct = [], [], []
        for batch, _ in batches(images, self.drawing.batch_size):
            for image in batch:
                number = len(tags)
                metadata = conditions.metadata[number]
                tags.append(str(metadata["tag"]))
                correct.append(shows(detector, image, metadata))
                line = {"image": self.place(number), "prompt": conditions.names[number], "correct": correct[-1]}
                lines.append(json.dumps({**line, "tag": tags[-1]}) + "\n")
        write_text(target.folder / "geneval.jsonl", "".join(lines))
        return figures(tags, correct)


def shows(detector: Detector, image: Tensor, metadata: Any) -> bool:
    """Whether an image shows what its prompt asks for."""
    objects = keep(detector.detect(image), str(metadata["tag"]))
    return is_correct(objects, metadata, lambda found, name: detector.colours(image, found, name))


def figures(tags: Sequence[str], correct: Sequence[bool]) -> Measurement:
    """A row a task, and the mean of all tasks: in it an image counts by how few its task has."""
    shares = summary(tags, correct)
    found = {
        tag: Figure.mean([float(c) for t, c in zip(tags, correct, strict=True) if t == tag])
        for tag in shares
        if tag != "overall"
    }
    tasks = len(found)
    parts = [len(tags) / (tasks * tags.count(t)) * c for t, c in zip(tags, correct, strict=True)]
    return {**found, "overall": Figure(shares["overall"], tuple(parts))}


def check(prompt: Prompt) -> None:
    """See that a prompt says what it wants.

    Raises:
        ValueError: it does not, or wants what the detector does not know.
    """
    if "tag" not in prompt.metadata or "include" not in prompt.metadata:
        raise ValueError(f"prompts: {prompt.caption!r} has no tag or include; give GenEval's evaluation_metadata.jsonl")
    for key in ("include", "exclude"):
        clauses: Any = prompt.metadata.get(key, ())
        for clause in clauses:
            if clause["class"] not in OBJECTS:
                raise ValueError(f"prompts: {prompt.caption!r} asks for {clause['class']!r}, no class of COCO; mend it")


def write_metadata(folder: Path, prompts: list[Prompt]) -> None:
    """What GenEval's own code wants beside the images of each prompt."""
    for number, prompt in enumerate(prompts):
        (folder / f"{number:05d}").mkdir(parents=True, exist_ok=True)
        line = {**prompt.metadata, "prompt": prompt.caption}
        write_text(folder / f"{number:05d}/metadata.jsonl", json.dumps(line) + "\n")
