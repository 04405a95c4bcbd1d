"""Pretraining configs of the bundled models."""

from dataclasses import replace

from sfumato.families import FAMILIES
from sfumato.pretraining.bitwise_stages import BitGeneratorTraining, BitTokenizerTraining
from sfumato.pretraining.generator_stage import GeneratorTraining
from sfumato.pretraining.pretrain import (
    ClassifierPretrainConfig,
    ImageTextPretrainConfig,
    PretrainConfig,
    RivalPretrainConfig,
)
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.settings import Settings

VAR, LLAMAGEN, INFINITY = FAMILIES["var"], FAMILIES["llamagen"], FAMILIES["infinity"]


def emoji_var() -> PretrainConfig:
    """64-pixel VAR of 512 emoji, from the npm package emoji-datasource-google or any folder of images."""
    return PretrainConfig(
        tokenizer=VAR.tokenizer_shape(
            scales=(1, 2, 3, 4, 6, 8),
            vocab_size=1024,
            latent_channels=16,
            base_channels=32,
            channel_multipliers=(1, 2, 4),
            num_res_blocks=1,
            patch=2,
            norm_groups=8,
        ),
        transformer=VAR.network_shape(depth=6, width=192, num_heads=3, num_classes=512),
        tokenizer_training=TokenizerTraining(steps=2700, batch_size=24, learning_rate=8e-4),
        generator_training=GeneratorTraining(steps=3800, batch_size=16, learning_rate=1.5e-3),
        settings=Settings(guidance=1.5, temperature=0.7),
        judge="emoji",
    )


EMOJI_LLAMAGEN = LLAMAGEN.network_shape(
    depth=6, width=192, num_heads=3, feed_forward_width=512, num_classes=512, condition_at_origin=True
)
EMOJI_VQ = LLAMAGEN.tokenizer_shape(
    grid_size=8,
    vocab_size=4096,
    code_width=8,
    latent_channels=16,
    base_channels=32,
    channel_multipliers=(1, 2, 4),
    num_res_blocks=1,
    patch=2,
    norm_groups=8,
)


def emoji_llamagen() -> PretrainConfig:
    """64-pixel LlamaGen of the same 512 emoji; its tokenizer's convolutions start from those of emoji-var."""
    return PretrainConfig(
        tokenizer=EMOJI_VQ,
        transformer=EMOJI_LLAMAGEN,
        start_from="emoji-var",
        tokenizer_training=TokenizerTraining(steps=900, batch_size=24, learning_rate=8e-4),
        generator_training=GeneratorTraining(
            steps=12_000, batch_size=16, learning_rate=1e-3, token_noise=0.3, own_tokens=1.0
        ),
        settings=Settings(guidance=2.0, temperature=0.6),
        judge="emoji",
    )


def emoji_t2i() -> PretrainConfig:
    """64-pixel LlamaGen that reads captions of the same emoji; starts from emoji-llamagen."""
    return PretrainConfig(
        tokenizer=EMOJI_VQ,
        transformer=replace(
            EMOJI_LLAMAGEN, num_classes=0, caption_width=64, num_caption_tokens=24, text_encoder="word-vectors"
        ),
        start_from="emoji-llamagen",
        tokenizer_training=TokenizerTraining(steps=0),
        generator_training=GeneratorTraining(
            steps=8000, batch_size=16, learning_rate=1e-3, warmup_steps=50, token_noise=0.3, own_tokens=1.0
        ),
        settings=Settings(guidance=1.5, temperature=0.6),
        judge="emoji",
    )


def emoji_infinity() -> PretrainConfig:
    """64-pixel Infinity that reads captions of the same emoji; its tokenizer's convolutions start from emoji-var's."""
    return PretrainConfig(
        tokenizer=INFINITY.tokenizer_shape(
            scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
            latent_channels=8,
            base_channels=32,
            channel_multipliers=(1, 2, 4),
            num_res_blocks=1,
            patch=2,
            norm_groups=8,
        ),
        transformer=INFINITY.network_shape(
            depth=6,
            width=192,
            num_heads=3,
            feed_forward_width=768,
            caption_width=64,
            num_caption_tokens=24,
            text_encoder="word-vectors",
            rotary_grid=(8, 8),
            num_levels=6,
        ),
        start_from="emoji-var",
        tokenizer_training=BitTokenizerTraining(steps=1600, batch_size=24, learning_rate=8e-4),
        # The paper flips up to 30 % of the bits. So small a model then learns to repair bits before it learns to draw.
        generator_training=BitGeneratorTraining(
            steps=12_000, batch_size=16, learning_rate=1.5e-3, bit_flips=0.02, own_tokens=1.0
        ),
        settings=Settings(guidance=3.0, temperature=0.5),
        judge="emoji",
    )


def emoji_clip() -> ImageTextPretrainConfig:
    """Image-text model of the same emoji and their captions, for rewards; every 16th emoji is held out."""
    return ImageTextPretrainConfig()


def emoji_classifier() -> ClassifierPretrainConfig:
    """Classifier of the same 512 emoji, for evaluation only."""
    return ClassifierPretrainConfig()


def emoji_rival() -> RivalPretrainConfig:
    """Another classifier of the same emoji, for rewards only."""
    return RivalPretrainConfig()
