"""The six tasks of GenEval (Ghosh, Hajishirzi & Schmidt 2023), scored without mmdet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.images import find_images
from sfumato.data.prompts import Prompt, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.image_sets import StoredImages, batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE, PROMPTS
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.suites.drawbench import asked, first_prompts
from sfumato.evaluation.targets import Drawing, Target
from sfumato.files import write_text
from sfumato.policy import Generator
from sfumato.request import Words
from sfumato.rewards.detector import CLIP, MASK2FORMER, Detector, load_detector
from sfumato.rewards.geneval_reward import check, shows
from sfumato.rewards.geneval_scoring import summary


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """Whether images show the objects of their prompts with the right number, color and position."""

    prompts: str = field(default="geneval", metadata=PROMPTS)
    """geneval for the bundled prompts of GenEval, or a file like its evaluation_metadata.jsonl"""
    per_prompt: int = 4
    """number of images per prompt"""
    first: int = 0
    """number of prompts to use, from the first; 0 for all"""
    detector: str = field(default=MASK2FORMER, metadata=FILE)
    """Mask2Former with COCO's 80 classes: hub id or folder"""
    clip: str = field(default=CLIP, metadata=FILE)
    """CLIP model that names colors: hub id or folder"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        prompts = first_prompts(self.prompts, self.first, self.per_prompt)
        for prompt in prompts:
            check(prompt)
        detector = load_detector(self.detector, self.clip, device)
        return lambda target: self.measure(target, prompts, detector)

    def place(self, number: int) -> str:
        """Return the path where GenEval's own code expects an image."""
        return f"{number // self.per_prompt:05d}/samples/{number % self.per_prompt:04d}.png"

    def measure(self, target: Target, prompts: list[Prompt], detector: Detector) -> Measurement:
        """Return the shares of correct images by task and overall; `geneval.jsonl` in the target's folder lists the
        result of each image."""

        def ask(generator: Generator) -> Words:
            return ask_prompts(generator, prompts).repeat(self.per_prompt)

        if target.has_images:
            images = stored_samples(Path(target.name), prompts, self.per_prompt) or target.images(self.drawing, ask)
        else:
            images = target.images(self.drawing, ask, self.place)
            write_metadata(target.folder / "images", prompts)
        words = asked(target, images, prompts, self.per_prompt)
        lines, tags, correct = [], [], []
        for batch, _ in batches(images, self.drawing.batch_size):
            for image in batch:
                number = len(tags)
                metadata = words.metadata[number]
                tags.append(str(metadata["tag"]))
                correct.append(shows(detector, image, metadata))
                line = {"image": self.place(number), "prompt": words.names[number], "correct": correct[-1]}
                lines.append(json.dumps({**line, "tag": tags[-1]}) + "\n")
        write_text(target.folder / "geneval.jsonl", "".join(lines))
        return figures(tags, correct)


def figures(tags: Sequence[str], correct: Sequence[bool]) -> Measurement:
    """Return one row per task, and the mean of all tasks as "overall", where every task has the same total weight."""
    shares = summary(tags, correct)
    by_task = {
        tag: Figure.mean([float(c) for t, c in zip(tags, correct, strict=True) if t == tag])
        for tag in shares
        if tag != "overall"
    }
    tasks = len(by_task)
    parts = [len(tags) / (tasks * tags.count(t)) * c for t, c in zip(tags, correct, strict=True)]
    return {**by_task, "overall": Figure(shares["overall"], tuple(parts))}


def stored_samples(folder: Path, prompts: list[Prompt], per_prompt: int) -> StoredImages | None:
    """Return the images of these prompts in a folder with the layout of GenEval's own code, without other files such as
    its grids; None if the folder has another layout.

    Raises:
        UserError: a prompt has too many or too few images, or the folder's metadata names another prompt.
    """
    if not (folder / "00000/samples").is_dir():
        return None
    files = []
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}"
        said = read_prompts(place / "metadata.jsonl")[0] if (place / "metadata.jsonl").is_file() else prompt
        if said.caption != prompt.caption:
            raise UserError(f"target: {place} is for {said.caption!r}, not {prompt.caption!r}; give its --prompts")
        images = [file for file in find_images(place / "samples") if file.stem.isdigit()]
        if len(images) != per_prompt:
            raise UserError(f"target: {place} has {len(images)} images, not {per_prompt}; give --per-prompt, or fix it")
        files += images
    return StoredImages(folder, files)


def write_metadata(folder: Path, prompts: list[Prompt]) -> None:
    """Write the metadata that GenEval's own code expects next to the images of each prompt."""
    for number, prompt in enumerate(prompts):
        (folder / f"{number:05d}").mkdir(parents=True, exist_ok=True)
        line = {**prompt.metadata, "prompt": prompt.caption}
        write_text(folder / f"{number:05d}/metadata.jsonl", json.dumps(line) + "\n")
