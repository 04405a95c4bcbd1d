"""Where a run's conditions come from, by its config: classes, or a file of captions."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sfumato.data.classes import ClassSampler, ConditionSampler, find_classes
from sfumato.data.prompts import Prompt, PromptSampler, find_prompts, read_prompts
from sfumato.errors import UserError
from sfumato.policy import Generator
from sfumato.text.cache import cache_features
from sfumato.text.encoders import WordVectors, load_text_encoder
from sfumato.training.config import GRPOConfig


def check_request(config: GRPOConfig, class_names: Sequence[str]) -> list[Prompt]:
    """The prompts that the config names; none where the model draws these classes.

    Raises:
        UserError: classes are given to a model that reads captions, or the other way round; there is no such class; or
            the file of prompts cannot be read.
    """
    if class_names:
        if config.prompts is not None:
            raise UserError(f"prompts: {config.model} draws classes, not captions; give classes instead")
        find_classes(config.classes, class_names)
        return []
    if config.classes:
        raise UserError(f"classes: {config.model} reads captions; give prompts instead")
    if config.prompts is None:
        raise UserError(f"prompts: {config.model} reads captions; give a file of them (.txt, .jsonl, .json, .csv)")
    return read_prompts(find_prompts(config.prompts))


def build_sampler(config: GRPOConfig, generator: Generator, device: torch.device) -> ConditionSampler:
    """The sampler of a run on this generator. Captions that a T5 must read are read once, and cached on disk.

    Raises:
        UserError: the request does not fit the generator (`check_request`), or the text encoder cannot be read.
    """
    prompts = check_request(config, generator.class_names)
    if not prompts:
        return ClassSampler(generator.class_names, config.classes, config.caption_template)
    encoder = config.text_encoder or generator.text_encoder
    if encoder == WordVectors.name:
        reader = load_text_encoder(encoder)
    else:
        folder = config.text_cache or text_cache_folder()
        captions = [prompt.caption for prompt in prompts]
        reader = cache_features(captions, encoder, lambda: load_text_encoder(encoder, device), folder)
    return PromptSampler(prompts, reader.encode, generator.longest_caption)


def text_cache_folder() -> Path:
    """Where text features are kept if the config does not say."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato/text"
