"""GenEval's six tasks (Ghosh, Hajishirzi & Schmidt 2023), scored without mmdet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.data.images import find_images
from sfumato.data.prompts import Prompt, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.detector import CLIP, MASK2FORMER, OBJECTS, Detector, load_detector
from sfumato.evaluation.geneval_scoring import COLOURS, RELATIONS, is_correct, keep, summary
from sfumato.evaluation.image_sets import StoredImages, batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.suites.drawbench import asked, first_prompts
from sfumato.evaluation.targets import Drawing, Target
from sfumato.files import write_text
from sfumato.policy import Generator
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """Whether the objects of a prompt are there: as many, of that colour, in that place."""

    prompts: str = "geneval"
    """GenEval's own, which are bundled, or a file like its evaluation_metadata.jsonl"""
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
        prompts = first_prompts(self.prompts, self.first, self.per_prompt)
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

        if target.has_images:
            images = stored_samples(Path(target.name), prompts, self.per_prompt) or target.images(self.drawing, ask)
        else:
            images = target.images(self.drawing, ask, self.place)
            write_metadata(target.folder / "images", prompts)
        conditions = asked(target, images, prompts, self.per_prompt)
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
        UserError: it does not, or wants what the detector does not know.
    """
    place = f"prompts: {prompt.caption!r}"
    if "tag" not in prompt.metadata or "include" not in prompt.metadata:
        raise UserError(f"{place} has no tag or include; give a file like GenEval's evaluation_metadata.jsonl")
    for key in ("include", "exclude"):
        clauses: Any = prompt.metadata.get(key, [])
        if not isinstance(clauses, list) or not all(isinstance(clause, dict) for clause in clauses):
            raise UserError(f"{place} has no list of objects in {key}; give a file like GenEval's")
        for number, clause in enumerate(clauses):
            wanted, count = clause.get("class"), clause.get("count")
            relation, other = clause.get("position", (RELATIONS[0], -1))
            if wanted not in OBJECTS:
                raise UserError(f"{place} asks for {wanted!r}, no class of COCO; mend it")
            if not isinstance(count, int) or count < 1:
                raise UserError(f"{place} asks for {count!r} of {wanted!r}; give a count from 1 up")
            if clause.get("color", COLOURS[0]) not in COLOURS:
                raise UserError(f"{place} asks for {clause['color']!r}; give one of {', '.join(COLOURS)}")
            if relation not in RELATIONS or other not in range(-1, number):
                raise UserError(f"{place} has a position {relation!r} of object {other!r}; name an earlier object")


def stored_samples(folder: Path, prompts: list[Prompt], per_prompt: int) -> StoredImages | None:
    """The images of these prompts in a folder laid out as GenEval's own code wants it, and nothing else that is there,
    such as its grids; None if it is laid out otherwise.

    Raises:
        UserError: there are more or fewer images of a prompt, or the folder says that they are of another.
    """
    if not (folder / "00000/samples").is_dir():
        return None
    files = []
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}"
        said = read_prompts(place / "metadata.jsonl")[0] if (place / "metadata.jsonl").is_file() else prompt
        if said.caption != prompt.caption:
            raise UserError(f"target: {place} is of {said.caption!r}, not {prompt.caption!r}; give its --prompts")
        found = [file for file in find_images(place / "samples") if file.stem.isdigit()]
        if len(found) != per_prompt:
            raise UserError(f"target: {place} has {len(found)} images, not {per_prompt}; give --per-prompt, or mend it")
        files += found
    return StoredImages(folder, files)


def write_metadata(folder: Path, prompts: list[Prompt]) -> None:
    """What GenEval's own code wants beside the images of each prompt."""
    for number, prompt in enumerate(prompts):
        (folder / f"{number:05d}").mkdir(parents=True, exist_ok=True)
        line = {**prompt.metadata, "prompt": prompt.caption}
        write_text(folder / f"{number:05d}/metadata.jsonl", json.dumps(line) + "\n")
