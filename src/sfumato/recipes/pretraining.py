"""How the bundled generators were trained."""

from sfumato.models.var import VARConfig
from sfumato.models.vqvae import VQVAEConfig
from sfumato.training.generator import GeneratorTraining
from sfumato.training.pretrain import ClassifierPretrainConfig, PretrainConfig
from sfumato.training.tokenizer import TokenizerTraining


def emoji_var() -> PretrainConfig:
    """64-pixel VAR of 512 emoji, from the npm package emoji-datasource-google or any folder of images."""
    return PretrainConfig(
        tokenizer=VQVAEConfig(
            scales=(1, 2, 3, 4, 6, 8),
            vocab_size=1024,
            latent_channels=16,
            base_channels=32,
            channel_multipliers=(1, 2, 4),
            num_res_blocks=1,
            patch=2,
            norm_groups=8,
        ),
        transformer=VARConfig(depth=6, width=192, num_heads=3, num_classes=512),
        tokenizer_training=TokenizerTraining(steps=2700, batch_size=24, learning_rate=8e-4),
        generator_training=GeneratorTraining(steps=3800, batch_size=16, learning_rate=1.5e-3),
    )


def emoji_classifier() -> ClassifierPretrainConfig:
    """Classifier of the same 512 emoji, for evaluation only."""
    return ClassifierPretrainConfig()
