"""Where a run's conditions come from, by its config: classes, or a file of captions."""

import os
from pathlib import Path

import torch

from sfumato.data.conditions import ClassSampler, ConditionSampler
from sfumato.data.prompts import PromptSampler, find_prompts, read_prompts
from sfumato.models.text import WordVectors, load_text_encoder
from sfumato.models.text_cache import cache_features
from sfumato.policy import Generator
from sfumato.training.config import GRPOConfig


def build_sampler(config: GRPOConfig, generator: Generator, device: torch.device) -> ConditionSampler:
    """The sampler of a run on this generator. Captions that a T5 must read are read once, and cached on disk.

    Raises:
        ValueError: classes are given to a generator that reads captions, or the other way round; or a file of prompts
            or the text encoder cannot be read.
    """
    if not generator.text_encoder:
        if config.prompts is not None:
            raise ValueError(f"prompts: {config.model} draws classes, not captions; give classes instead")
        return ClassSampler(generator.class_names, config.classes, config.caption_template)
    if config.classes:
        raise ValueError(f"classes: {config.model} reads captions; give prompts instead")
    if config.prompts is None:
        raise ValueError(f"prompts: {config.model} reads captions; give a file of them (.txt, .jsonl, .json, .csv)")
    prompts = read_prompts(find_prompts(config.prompts))
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
