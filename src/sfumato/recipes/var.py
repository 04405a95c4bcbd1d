"""Runs on the released VAR models, with the settings of Gallici & Sáez de Ocáriz Borde (2025)."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.training.train_config import TrainConfig

MICRO_BATCH = {16: 32, 20: 16, 24: 16, 30: 8, 36: 2}
"""Number of images per forward and backward pass, by depth, which fits an 80 GB GPU (`sfumato plan`)."""
SAMPLE_BATCH = {16: 64, 20: 64, 24: 64, 30: 64, 36: 32}
"""Number of images drawn at once."""


def var_recipe(depth: int, reward: str) -> TrainConfig:
    """32 labels × 16 images per step, minibatches of 32, learning rate 1e-4, beta 0.2, tau 0.7, epsilon 0.2."""
    return TrainConfig(
        model=f"var-d{depth}",
        reward={reward: 1.0},
        sample_batch_size=SAMPLE_BATCH[depth],
        engine=EngineConfig(micro_batch_size=MICRO_BATCH[depth], precision="bf16"),
    )


REWARDS = {
    "aesthetic": "aesthetic",
    "old-picture": "clip?prompt=an old picture",
    "painting": "var-painting",
    "painting-aesthetic": "var-aesthetic-painting",
}
"""Rewards of the paper's large runs, by the last part of the recipe's name."""
STEPS = {(30, "aesthetic"): 40_000, (30, "painting-aesthetic"): 10_000}
"""Numbers of steps of the paper's large runs, where they are known."""


def var_style_recipe(depth: int, style: str) -> TrainConfig:
    """The paper's runs for aesthetics, a style by prompt, or both, with the settings of `var_recipe`.

    VAR-d30 has 40,000 steps for aesthetics, and 10,000 for paintings with aesthetics. Not stated, as far as we could
    find: the steps of the other runs (here 10,000 for d30, and 300 for d16, as for brightness), the words of the prompt
    for old pictures, the scale between the two rewards (see `var-aesthetic-painting`), hardware and time. For Table 1,
    the paper trains on half of the classes, without saying in the text that we have which half: give
    `--classes 0-499`. All other runs draw all classes.
    """
    config = var_recipe(depth, REWARDS[style])
    return replace(config, steps=STEPS.get((depth, style), 10_000 if depth == 30 else config.steps))
