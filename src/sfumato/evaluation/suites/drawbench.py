"""Rewards on a file of prompts, such as DrawBench (Saharia et al. 2022; Yuan et al. 2025, Table 4)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.prompts import Prompt, find_prompts, prompt_words, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_prompts
from sfumato.evaluation.image_sets import Images, batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import PROMPTS, REWARDS
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.request import Words
from sfumato.rewards import build_reward
from sfumato.rewards.base import join_seen


@dataclass(frozen=True, kw_only=True)
class DrawBench:
    """Rewards of images for every prompt of a file. Existing images must be in the order of the prompts."""

    prompts: str | None = field(default=None, metadata=PROMPTS)
    """file of captions (.txt, .jsonl, .json, .csv), or a bundled one: emoji-captions-held-out"""
    rewards: tuple[str, ...] = field(default=("clip", "hps", "aesthetic", "imagereward", "pickscore"), metadata=REWARDS)
    """rewards by name, with options; also deqa?endpoint=... and unifiedreward?endpoint=..."""
    per_prompt: int = 4
    """number of images per prompt"""
    first: int = 0
    """number of prompts to use, from the first; 0 for all"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.prompts is None:
            raise UserError("prompts: no file is given; give a file of captions, such as DrawBench's table as .csv")
        prompts = first_prompts(self.prompts, self.first, self.per_prompt)
        reward = build_reward(dict.fromkeys(self.rewards, 1.0)).require_thresholds()

        def ask(generator: Generator) -> Words:
            return ask_prompts(generator, prompts).repeat(self.per_prompt)

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, ask)
            words = asked(target, images, prompts, self.per_prompt)
            seen, first = [], 0
            for batch, _ in batches(images, self.drawing.batch_size):
                seen.append(reward.see(batch.to(target.device), words[first : first + len(batch)]))
                first += len(batch)
            _, scores = reward.finish(join_seen(seen), words)
            return {name: Figure.mean(parts.tolist()) for name, parts in scores.items()}

        return measure


def first_prompts(file: str, first: int, per_prompt: int) -> list[Prompt]:
    """Return the first prompts of a file, or all if `first` is 0.

    Raises:
        UserError: a number is wrong, or the file cannot be read.
    """
    check_counts(first, per_prompt)
    return read_prompts(find_prompts(file))[: first or None]


def check_counts(first: int, per_prompt: int) -> None:
    """Check the number of prompts to use and of images for each.

    Raises:
        UserError: a number is wrong.
    """
    if per_prompt < 1:
        raise UserError(f"per_prompt: {per_prompt} is too small; give at least 1")
    if first < 0:
        raise UserError(f"first: {first} is negative; give a number of prompts, or 0 for all")


def asked(target: Target, images: Images, prompts: list[Prompt], per_prompt: int) -> Words:
    """Return the prompts of a target's images as words.

    Raises:
        UserError: the number of images does not match the prompts.
    """
    if len(images) != len(prompts) * per_prompt:
        raise UserError(
            f"target: {target.name} has {len(images)} images, not {per_prompt} of each of {len(prompts)} prompts; "
            "correct per_prompt, or add the missing images"
        )
    return prompt_words(prompts).repeat(per_prompt)
