"""Runs on the bundled generators: minutes on two CPU cores, no downloads."""

from dataclasses import replace

from sfumato.objectives.grpo import LossConfig
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


def _without_kl(reward: str) -> GRPOConfig:
    """A reward without an upper target, no KL penalty and no decay of the learning rate: nothing holds the emoji."""
    config = _emoji({reward: 1.0})
    return replace(config, steps=60, final_learning_rate=config.learning_rate, loss=LossConfig(clip=0.2, kl_weight=0.0))


def emoji_dark_no_kl() -> GRPOConfig:
    """As dark as can be, without the KL penalty: shows the collapse of the first paper's Figure 7."""
    return _without_kl("darkness")


def emoji_bright_no_kl() -> GRPOConfig:
    """As bright as can be, without the KL penalty."""
    return _without_kl("brightness")


def emoji_colorful_no_kl() -> GRPOConfig:
    """As colourful as can be, without the KL penalty."""
    return _without_kl("colorfulness")


def _emoji_llamagen(model: str, reward: dict[str, float]) -> GRPOConfig:
    """The second paper's guidance, temperature and KL weight; a learning rate for a small model and few steps."""
    return replace(
        _emoji(reward),
        model=model,
        steps=30,
        labels_per_step=16,
        group_size=8,
        minibatch_size=64,
        temperature=1.0,
        guidance=2.0,
    )


def emoji_llamagen_colorful() -> GRPOConfig:
    """Next-token emoji in colourful pictures, guided as in the second paper."""
    return _emoji_llamagen("emoji-llamagen", {"colorfulness": 1.0})


def emoji_t2i_clip() -> GRPOConfig:
    """Emoji drawn from 32 captions, rewarded for fitting them (the bundled emoji-clip)."""
    return replace(
        _emoji_llamagen("emoji-t2i", {"emoji-clip": 1.0}),
        prompts="emoji-captions-few",
        steps=40,
        labels_per_step=8,
        minibatch_size=32,
        learning_rate=1.5e-4,
        warmup_steps=3,
    )
