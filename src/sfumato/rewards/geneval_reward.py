"""GenEval (Ghosh, Hajishirzi & Schmidt 2023) as a reward: whether an image shows the objects that its prompt names."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.prompts import Prompt
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.detector import CLIP, MASK2FORMER, OBJECTS, Detector, load_detector
from sfumato.rewards.geneval_scoring import COLORS, RELATIONS, graded, is_correct, keep


@dataclass(frozen=True, kw_only=True)
class GenEvalReward:
    """1 or 0 for an image that is correct or not, or the mean of how well each condition of its prompt is met.

    The prompts need the keys `tag` and `include`, and perhaps `exclude`, of GenEval's `evaluation_metadata.jsonl`.
    """

    score: Literal["graded", "correct"] = "graded"
    """graded for the mean over conditions, which is at most 1 (see `graded`); correct for GenEval's own 0 or 1"""
    detector: str = MASK2FORMER
    """Mask2Former with COCO's 80 classes: hub id or folder"""
    clip: str = CLIP
    """CLIP model that names colors: hub id or folder"""

    def __post_init__(self):
        load(self.detector, self.clip)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        for caption, metadata in zip(words.captions, words.metadata, strict=True):
            check(Prompt(caption, metadata))
        detector = replace(load(self.detector, self.clip), device=images.device)
        if detector.model is not None:
            detector.model.to(images.device)
        judge = shows if self.score == "correct" else grade
        scores = [float(judge(detector, image, data)) for image, data in zip(images, words.metadata, strict=True)]
        return images.new_tensor(scores)


@functools.cache
def load(detector: str, clip: str) -> Detector:
    """Load the networks; later calls return the same object.

    Raises:
        UserError: see `load_detector`.
    """
    return load_detector(detector, clip, torch.device("cpu"))


def shows(detector: Detector, image: Float[Tensor, "3 H W"], metadata: Mapping[str, Any]) -> bool:
    """Return whether an image shows what its prompt describes."""
    objects = keep(detector.detect(image), str(metadata["tag"]))
    return is_correct(objects, metadata, lambda chosen, name: detector.colors(image, chosen, name))


def grade(detector: Detector, image: Float[Tensor, "3 H W"], metadata: Mapping[str, Any]) -> float:
    """Return how well the conditions of an image's prompt are met on average."""
    objects = keep(detector.detect(image), str(metadata["tag"]))
    return graded(objects, metadata, lambda chosen, name: detector.colors(image, chosen, name))


def check(prompt: Prompt) -> None:
    """Check the metadata of a prompt.

    Raises:
        UserError: it is missing or malformed, or the detector does not know an object.
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
                raise UserError(f"{place} asks for {wanted!r}, which is not a COCO class; fix it")
            if not isinstance(count, int) or count < 1:
                raise UserError(f"{place} asks for {count!r} of {wanted!r}; give a count of 1 or more")
            if clause.get("color", COLORS[0]) not in COLORS:
                raise UserError(f"{place} asks for the color {clause['color']!r}; give one of {', '.join(COLORS)}")
            if relation not in RELATIONS or other not in range(-1, number):
                raise UserError(f"{place} has the position {relation!r} to object {other!r}; name an earlier object")
