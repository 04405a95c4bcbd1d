"""Rewards on a file of prompts, such as DrawBench (Saharia et al. 2022; Yuan et al. 2025, Table 4)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.prompts import Prompt, find_prompts, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.image_sets import Images, batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rewards import build_reward
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class DrawBench:
    """Rewards of images of every prompt of a file. Images that are there are those of the prompts, in order."""

    prompts: str | None = None
    """file of captions (.txt, .jsonl, .json, .csv), or a bundled one: emoji-captions-held-out"""
    rewards: tuple[str, ...] = ("clip", "hps", "aesthetic", "imagereward", "pickscore")
    """rewards by name, with options: also deqa?endpoint=... and unifiedreward?endpoint=..."""
    per_prompt: int = 4
    """images a prompt"""
    first: int = 0
    """only so many prompts; 0 is all"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.prompts is None:
            raise UserError("prompts: none are given; give a file of captions, such as DrawBench's table as .csv")
        prompts = first_prompts(self.prompts, self.first, self.per_prompt)
        reward = build_reward(dict.fromkeys(self.rewards, 1.0)).require_thresholds()

        def ask(generator: Generator, drawing: Drawing) -> Conditions:
            return ask_prompts(generator, drawing, prompts).repeat(self.per_prompt)

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, ask)
            conditions = asked(target, images, prompts, self.per_prompt)
            columns: dict[str, list[float]] = {}
            first = 0
            for batch, _ in batches(images, self.drawing.batch_size):
                part = conditions[first : first + len(batch)]
                for name, scores in reward(batch.to(target.device), part.to(target.device))[1].items():
                    columns.setdefault(name, []).extend(scores.tolist())
                first += len(batch)
            return {name: Figure.mean(parts) for name, parts in columns.items()}

        return measure


def first_prompts(file: str, first: int, per_prompt: int) -> list[Prompt]:
    """The first prompts of a file, or all if `first` is 0.

    Raises:
        UserError: a number is wrong, or the file cannot be read.
    """
    if per_prompt < 1:
        raise UserError(f"per_prompt: {per_prompt} is too small; give at least 1")
    if first < 0:
        raise UserError(f"first: {first} is negative; give a number of prompts, or 0 for all")
    return read_prompts(find_prompts(file))[: first or None]


def asked(target: Target, images: Images, prompts: list[Prompt], per_prompt: int) -> Conditions:
    """What the images of a target were asked to show, without the text's features.

    Raises:
        UserError: there are not as many images as the prompts ask for.
    """
    if len(images) != len(prompts) * per_prompt:
        raise UserError(
            f"target: {target.name} has {len(images)} images, not {per_prompt} of each of {len(prompts)} prompts; "
            "give per_prompt, or complete them"
        )
    names, metadata = tuple(p.caption for p in prompts), tuple(p.metadata for p in prompts)
    return Conditions(labels=torch.arange(len(prompts)), names=names, metadata=metadata).repeat(per_prompt)
