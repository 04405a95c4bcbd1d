"""Requests of a run, as set in its config: classes, or a file of captions."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sfumato.data.classes import ClassSampler, WordsSampler
from sfumato.data.prompts import Prompt, PromptSampler, find_prompts, read_prompts
from sfumato.errors import UserError
from sfumato.naming import find_classes
from sfumato.policy import Generator
from sfumato.rollouts.dataset import DataSet, open_data_set
from sfumato.text.reader import ReadsCaptions
from sfumato.training.train_config import TrainConfig


def check_request(config: TrainConfig, class_names: Sequence[str]) -> list[Prompt]:
    """Return the prompts that the config names; an empty list if the model draws classes.

    Raises:
        UserError: classes are given to a model that reads captions, or prompts to a model that draws classes; a class
            or the folder of data does not exist; or the file of prompts cannot be read.
    """
    if config.data is not None and not Path(config.data).is_dir():
        raise UserError(f"data: {config.data} is not a folder; give a folder with one subfolder of images per class")
    if class_names:
        if config.prompts is not None:
            raise UserError(f"prompts: {config.model} draws classes, not captions; give classes instead")
        find_classes(config.classes, class_names)
        return []
    if config.classes:
        raise UserError(f"classes: {config.model} reads captions; give prompts instead")
    if config.prompts is None:
        raise UserError(f"prompts: {config.model} reads captions; give a caption file (.txt, .jsonl, .json, .csv)")
    return read_prompts(find_prompts(config.prompts))


def build_data_set(config: TrainConfig, generator: Generator) -> DataSet | None:
    """Open the data set that a run learns from; None if it draws its images.

    Raises:
        UserError: see `open_data_set`.
    """
    if config.data is None:
        return None
    classes = find_classes(config.classes, generator.card.class_names) if config.classes else ()
    return open_data_set(config.data, generator, classes, config.caption_template)


def build_sampler(
    config: TrainConfig, generator: Generator, device: torch.device, data: DataSet | None = None
) -> WordsSampler:
    """Build the sampler of a run on this generator.

    If a large text encoder reads the captions, also those of a data set, each caption is read once and its features are
    cached on disk.

    Raises:
        UserError: the request does not fit the generator (`check_request`), or the text encoder cannot be read.
    """
    prompts = check_request(config, generator.card.class_names)
    if not prompts:
        return ClassSampler(generator.card.class_names, config.classes, config.caption_template)
    if isinstance(generator, ReadsCaptions):
        folder = Path(config.text_cache) if config.text_cache else text_cache_folder()
        captions = [*(prompt.caption for prompt in prompts), *(data.words.captions if data else ())]
        generator.reader.prepare(captions, folder, device)
    return PromptSampler(prompts)


def text_cache_folder() -> Path:
    """Return the folder for text features if the config names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato/text"
