"""Draw the same conditions and seeds with several models, and score the pictures with the rewards of the runs."""

import json
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.data.prompts import Prompt, find_prompts, prompt_words, read_prompts
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.families.library import load_generator, read_card
from sfumato.naming import class_words, find_class
from sfumato.playground.columns import Run, Source, columns_of, find_models
from sfumato.policy import Generator, Policy
from sfumato.request import Words
from sfumato.rewards import WeightedSum, build_reward
from sfumato.rewards.base import short_names
from sfumato.settings import Settings, SettingsOptions

MOST = 16
"""Largest number of images of a model at a time."""
SPARE = 2
"""Number of models that stay loaded besides one for each column."""


@dataclass(frozen=True)
class Picture:
    """One image, and its rewards."""

    image: Image.Image
    scores: dict[str, float]
    """reward of the runs, or of each run by name if they have different ones; NaN for no score"""
    parts: dict[str, float]
    """scores of the parts of these rewards, if they have several, without their weights"""


class Playground:
    """Models side by side. Several threads may draw; one after another does."""

    def __init__(self, names: Sequence[str], device: torch.device, precision: Precision = "auto"):
        """Find the models and build the rewards of the runs; weights are loaded when they are first needed.

        Args:
            names: run folders, and anything else that `load_generator` takes.
            device: where to draw and to score.
            precision: precision of drawing.

        Raises:
            UserError: there is no such model, a run has no checkpoint, a reward lacks a package, or the models do not
                have the same classes.
        """
        models = find_models(names)
        self.columns = columns_of(models)
        self.runs = [model for model in models if isinstance(model, Run)]
        self.rewards = rewards_of(self.runs)
        self.device = device
        self.precision: Precision = precision
        self.class_names = self._common_classes()
        self.prompts = {} if self.class_names else prompts_of(self.runs)
        self.template = next((run.config.get("caption_template") for run in self.runs), None) or "a photo of a {name}"
        self._lock = threading.Lock()
        self._load = lru_cache(len(self.columns) + SPARE)(self._load_anew)

    def draw(
        self, column: int, step: int, condition: str | int, seed: int, count: int, options: SettingsOptions
    ) -> list[Picture]:
        """Draw and score one condition with one model.

        Args:
            column: number of the column.
            step: number of training steps; the nearest checkpoint draws.
            condition: class by name or number, or a caption.
            seed: seed of the first image; it increases by 1 for each further image.
            count: number of images, 1 to `MOST`.
            options: settings that replace the model's own.

        Raises:
            UserError: an argument is out of range, the model cannot be loaded, or a reward fails.
        """
        if not 1 <= count <= MOST:
            raise UserError(f"count: {count} is out of range; give 1 to {MOST}")
        chosen = self.columns[column]
        words = self.words(condition).repeat(count)
        with self._lock:  # rewards and the cache of models are shared by all visitors
            generator = self._load(chosen.checkpoints[chosen.nearest(step)])
            policy = Policy(generator, options.settings(generator.card.settings))
            with autocast(self.device, self.precision):
                images = policy.draw(policy.request(words), torch.arange(seed, seed + count), 32)
            totals, parts = self._score(images, words)
        return [
            Picture(image, {name: v[n] for name, v in totals.items()}, {name: v[n] for name, v in parts.items()})
            for n, image in enumerate(to_pictures(images))
        ]

    def words(self, condition: str | int) -> Words:
        """Return the words of a class or of a caption; a caption of a run's file has its metadata.

        Raises:
            UserError: there is no such class, or the caption is empty.
        """
        if self.class_names:
            return class_words([find_class(condition, self.class_names)], self.class_names, self.template)
        caption = " ".join(str(condition).split())
        if not caption:
            raise UserError("caption: it is empty; write what the images should show")
        return prompt_words([self.prompts.get(caption, Prompt(caption))])

    def _load_anew(self, source: Source) -> Generator:
        model, weights, tokenizer, encoder = astuple(source)
        return load_generator(model, weights=weights, tokenizer=tokenizer, device=self.device, text_encoder=encoder)

    def _score(self, images: Tensor, words: Words) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Return the rewards of all images by name, and those of parts."""
        totals, parts = {}, {}
        for name, reward in self.rewards.items():
            total, scores = reward(images, words)
            totals[name] = total.tolist()
            if len(scores) > 1:
                parts |= {short: scores[part].tolist() for part, short in short_names(scores).items()}
        return totals, parts

    def _common_classes(self) -> tuple[str, ...]:
        """Return the class names of all models; empty if they read captions."""
        first, *others = [(c.name, read_card(c.checkpoints[c.steps[-1]].model).class_names) for c in self.columns]
        for name, class_names in others:
            if class_names != first[1]:
                raise UserError(f"models: {name} and {first[0]} do not have the same classes; show them separately")
        return first[1]


def rewards_of(runs: Sequence[Run]) -> dict[str, WeightedSum]:
    """Return the different rewards of runs: "reward" if there is one, otherwise by the name of the run.

    Raises:
        UserError: a reward cannot be built, or lacks the thresholds that its run measured.
    """
    found: dict[str, tuple[str, WeightedSum]] = {}
    for run in runs:
        measured = read_thresholds(run.folder)
        key = json.dumps([run.config["reward"], measured], sort_keys=True)
        if key not in found:
            reward = build_reward(run.config["reward"])
            known = {name: measured[name] for name in reward.without_thresholds() if name in measured}
            found[key] = run.name, reward.with_thresholds(known).require_thresholds()
    alone = len(found) == 1
    return {"reward" if alone else name: reward for name, reward in found.values()}


def read_thresholds(folder: Path) -> dict[str, list[float]]:
    """Return the thresholds of quantized rewards that a run measured; empty if it has none."""
    file = folder / "thresholds.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def prompts_of(runs: Sequence[Run]) -> dict[str, Prompt]:
    """Return the prompts that the runs draw from, by caption; those whose file is no longer there are left out."""
    files = dict.fromkeys(find_prompts(run.config["prompts"]) for run in runs if run.config.get("prompts"))
    return {prompt.caption: prompt for file in files if file.is_file() for prompt in read_prompts(file)}


def read_options(**texts: str) -> SettingsOptions:
    """Return the sampling settings that a person has typed, by name: a number, or one for each unit, separated by
    spaces; nothing for the model's own.

    Raises:
        UserError: a text is not a number, or a number is out of range.
    """
    kinds = {field.name: int if field.name == "top_k" else float for field in fields(Settings)}
    values = {}
    for name, text in texts.items():
        try:
            numbers = tuple(kinds[name](part) for part in text.replace(",", " ").split())
        except ValueError:
            raise UserError(f"{name}: {text!r} is not a number; give one, or one for each unit") from None
        values[name] = numbers[0] if len(numbers) == 1 else numbers or None
    return SettingsOptions(**values)


def write_options(options: SettingsOptions) -> dict[str, str]:
    """Return the texts that `read_options` reads; empty for settings that are not given."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in given.items()}
    return {name: "" if values == (None,) else " ".join(f"{v:g}" for v in values) for name, values in lists.items()}
