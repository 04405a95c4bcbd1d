"""Runs on the bundled generators. They take minutes on two CPU cores and need no downloads."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.objectives import GRPO, OBJECTIVES, PrefixGRPO
from sfumato.settings import Settings
from sfumato.training.train_config import TrainConfig


def _emoji(reward: dict[str, float]) -> TrainConfig:
    return TrainConfig(
        model="emoji-var",
        reward=reward,
        policy=Settings(temperature=0.7),
        objective=GRPO(clip=0.2, kl_weight=0.1),
        engine=EngineConfig(learning_rate=2e-4, final_learning_rate=5e-5),
        steps=45,
        groups_per_step=8,
        group_size=16,
        minibatch_size=32,
    )


def emoji_dark() -> TrainConfig:
    """Emoji in pictures darker than 0.2."""
    return _emoji({"dark": 1.0})


def emoji_dark_fast() -> TrainConfig:
    """Emoji in pictures darker than 0.2 that match their names, learned from previews of the first 4 of 6 scales.

    The second reward is there because pictures that are only dark are recognized less often. It is an image-text model,
    and not the judge.
    """
    return replace(
        _emoji({"dark": 1.0, "emoji-clip": 2.0}),
        objective=PrefixGRPO(clip=0.2, kl_weight=0.1, units=4, alpha=0.7, preview=True),
        steps=24,
    )


ONE_UPDATE = ("rloo", "dpo", "best-of-n")
"""Objectives without a ratio, whose gradient is exact only for images that have just been drawn."""


def emoji_dark_with(name: str) -> TrainConfig:
    """Emoji in pictures darker than 0.2, with another objective and its own defaults, at the learning rate of GRPO."""
    config = emoji_dark()
    size = config.images_per_step if name in ONE_UPDATE else config.minibatch_size
    return replace(config, objective=OBJECTIVES[name](), minibatch_size=size)


def emoji_bright() -> TrainConfig:
    """Emoji in pictures of brightness 0.8 or more."""
    return _emoji({"bright": 1.0})


def emoji_colorful() -> TrainConfig:
    """Emoji in colorful pictures (Hasler & Süsstrunk's measure)."""
    return _emoji({"colorfulness": 1.0})


def _without_kl(reward: str) -> TrainConfig:
    """A reward without an upper limit, without KL penalty and learning rate decay, so nothing preserves the emoji."""
    config = _emoji({reward: 1.0})
    engine = replace(config.engine, final_learning_rate=config.engine.learning_rate)
    return replace(config, steps=60, engine=engine, objective=GRPO(clip=0.2, kl_weight=0.0))


def emoji_dark_no_kl() -> TrainConfig:
    """Emoji as dark as possible, without the KL penalty."""
    return _without_kl("darkness")


def emoji_bright_no_kl() -> TrainConfig:
    """Emoji as bright as possible, without the KL penalty."""
    return _without_kl("brightness")


def emoji_colorful_no_kl() -> TrainConfig:
    """Emoji as colorful as possible, without the KL penalty."""
    return _without_kl("colorfulness")


def _emoji_llamagen(model: str, reward: dict[str, float]) -> TrainConfig:
    """A run with the second paper's guidance, temperature and KL weight, and a learning rate for a small model and few
    steps."""
    return replace(
        _emoji(reward),
        model=model,
        policy=Settings(guidance=2.0),
        steps=30,
        groups_per_step=16,
        group_size=8,
        minibatch_size=64,
    )


def emoji_llamagen_colorful() -> TrainConfig:
    """Next-token emoji in colorful pictures, with the second paper's guidance."""
    return _emoji_llamagen("emoji-llamagen", {"colorfulness": 1.0})


def emoji_t2i_clip() -> TrainConfig:
    """Emoji from 32 captions, rewarded for matching them (by the bundled emoji-clip)."""
    config = _emoji_llamagen("emoji-t2i", {"emoji-clip": 1.0})
    return replace(
        config,
        prompts="emoji-captions-few",
        engine=replace(config.engine, learning_rate=1.5e-4, warmup_steps=3),
        steps=40,
        groups_per_step=8,
        minibatch_size=32,
    )


def emoji_infinity_dark() -> TrainConfig:
    """Emoji from their names, bit by bit, in pictures darker than 0.2; learns from previews, as `emoji_dark_fast`.

    Hardly any picture of a bare name is so dark before training, so darkness itself is a reward too.
    """
    return replace(
        emoji_dark_fast(),
        model="emoji-infinity",
        prompts="emoji-names",
        reward={"darkness": 4.0, "dark": 2.0, "emoji-clip": 1.0},
        policy=Settings(guidance=2.0, temperature=0.7),
        objective=PrefixGRPO(clip=0.2, kl_weight=0.1, kl="exact", units=4, alpha=0.7, preview=True),
        steps=30,
    )


def emoji_infinity_clip() -> TrainConfig:
    """Emoji from captions, bit by bit, rewarded for matching them (by the bundled emoji-clip)."""
    return replace(
        _emoji({"emoji-clip": 1.0}),
        model="emoji-infinity",
        prompts="emoji-captions",
        policy=Settings(),
        objective=GRPO(clip=0.2, kl_weight=0.02, kl="exact"),
        engine=EngineConfig(learning_rate=2e-4, final_learning_rate=1e-4),
        steps=40,
        groups_per_step=16,
        group_size=8,
        minibatch_size=64,
    )
