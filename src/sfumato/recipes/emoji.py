"""Runs on the bundled `emoji-var`: minutes on two CPU cores, no downloads."""

from dataclasses import replace

from sfumato.algorithms.losses import LossConfig
from sfumato.training.config import GRPOConfig


def _emoji(reward: dict[str, float]) -> GRPOConfig:
    return GRPOConfig(
        model="emoji-var",
        reward=reward,
        steps=45,
        labels_per_step=8,
        group_size=16,
        minibatch_size=32,
        learning_rate=2e-4,
        final_learning_rate=5e-5,
        loss=LossConfig(clip=0.2, kl_weight=0.1),
    )


def emoji_dark() -> GRPOConfig:
    """Emoji in pictures darker than 0.2: the share that meets the target rises from a few per cent to 95 %."""
    return _emoji({"dark": 1.0})


def emoji_bright() -> GRPOConfig:
    """Emoji in pictures of brightness 0.8 or more."""
    return _emoji({"bright": 1.0})


def emoji_colorful() -> GRPOConfig:
    """Emoji in colourful pictures (Hasler & Süsstrunk's measure)."""
    return _emoji({"colorfulness": 1.0})


def without_kl(config: GRPOConfig) -> GRPOConfig:
    """The same without the KL penalty, to show the collapse of the first paper's Figure 7."""
    return replace(config, loss=replace(config.loss, kl_weight=0.0))


def emoji_dark_no_kl() -> GRPOConfig:
    """emoji-dark without the KL penalty: shows the collapse of the first paper's Figure 7."""
    return without_kl(emoji_dark())


def emoji_bright_no_kl() -> GRPOConfig:
    """emoji-bright without the KL penalty."""
    return without_kl(emoji_bright())


def emoji_colorful_no_kl() -> GRPOConfig:
    """emoji-colorful without the KL penalty."""
    return without_kl(emoji_colorful())
