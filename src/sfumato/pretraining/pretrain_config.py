"""Settings of each kind of pre-training."""

import math
from dataclasses import dataclass, field
from typing import Any

from sfumato.emoji.image_text import ImageTextConfig
from sfumato.engine.engine_config import at_least, check_seed
from sfumato.errors import UserError
from sfumato.pretraining.classifier_stage import ClassifierTraining
from sfumato.pretraining.generator_stage import GeneratorTraining
from sfumato.pretraining.image_text_stage import ImageTextTraining
from sfumato.pretraining.tokenizer_stage import AutoencoderTraining, TokenizerTraining
from sfumato.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings for training a generator from scratch."""

    tokenizer: Any
    """shape of the tokenizer: an instance of the family's `tokenizer_shape`"""
    transformer: Any
    """shape of the network: an instance of the family's `network_shape`; `num_classes` is set from the data"""
    start_from: str | None = None
    """bundled model or folder to copy tensors from where name and shape match; if not given, all weights are random.
    emoji-var fits the recipe emoji-var, and is much faster than random weights on your own images too"""
    tokenizer_training: AutoencoderTraining = field(default_factory=TokenizerTraining)
    """first stage: the tokenizer"""
    generator_training: GeneratorTraining = field(default_factory=GeneratorTraining)
    """second stage: the network, on the tokens"""
    settings: Settings = field(default_factory=Settings)
    """default sampling settings of the model, stored in its card"""
    judge: str | None = None
    """classifier that knows the classes, stored in the model's card: emoji, or None"""
    seed: int = 0
    """seed of the initial weights and of all random draws"""
    save_every: int = 250
    """number of steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class ClassifierPretrainConfig:
    """Settings for training a classifier for evaluation from scratch."""

    widths: tuple[int, ...] = (32, 64, 128, 192)
    """number of channels in each stage; every stage halves the side"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    """the only training stage"""
    seed: int = 0
    """seed of the initial weights and of all random draws"""
    save_every: int = 250
    """number of steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class RivalPretrainConfig:
    """Settings for training a classifier for rewards; its shape and images differ from those of the evaluation."""

    widths: tuple[int, ...] = (64, 128, 192)
    """number of channels in each stage; every stage after the first merges 2 × 2 patches"""
    depths: tuple[int, ...] = (1, 2, 2)
    """number of blocks in each stage"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    """the only training stage"""
    seed: int = 1
    """seed of the initial weights and of all random draws"""
    save_every: int = 250
    """number of steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class ImageTextPretrainConfig:
    """Settings for training an image-text model for rewards from scratch."""

    shape: ImageTextConfig = field(default_factory=ImageTextConfig)
    """shape of the model"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ImageTextTraining = field(default_factory=ImageTextTraining)
    """the only training stage"""
    seed: int = 0
    """seed of the initial weights and of all random draws"""
    save_every: int = 250
    """number of steps between checkpoints and sample grids"""


AnyPretrainConfig = PretrainConfig | ClassifierPretrainConfig | RivalPretrainConfig | ImageTextPretrainConfig


def check_ranges(config: AnyPretrainConfig) -> None:
    """Check the numbers of a config, and of the stages in it.

    Raises:
        UserError: a number is out of range; the field is named as the option is, with underscores.
    """
    at_least("save_every", config.save_every, 1)
    check_seed(config.seed)
    for stage in ("tokenizer_training", "generator_training", "training"):
        training = getattr(config, stage, None)
        if training is None:
            continue
        for name, least in (("steps", 0), ("batch_size", 1), ("warmup_steps", 0)):
            at_least(f"{stage}.{name}", getattr(training, name), least)
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(training, name)
            if not 0 < value < math.inf:
                raise UserError(f"{stage}.{name}: {value} is out of range; give a number above 0")
        for name in ("class_drop", "token_noise", "own_tokens", "bit_flips"):
            value = getattr(training, name, 0.0)
            if not 0 <= value <= 1:
                raise UserError(f"{stage}.{name}: {value} is not a share; give a number from 0 to 1")
