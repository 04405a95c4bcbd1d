"""Runs on the released Switti models. No paper has published settings for them; these are a place to start."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.families.library import releases
from sfumato.objectives import GRPO
from sfumato.training.train_config import TrainConfig


def switti_recipe(model: str) -> TrainConfig:
    """8 captions × 8 images per step, learning rate 1e-6, beta 0.01, epsilon 0.2; the published guidance.

    The last scales are drawn at temperature 1, not at the published 0.1, which would multiply the differences of their
    log-probabilities by 10 and so clip almost all of their ratios. They have 71 % of the tokens at 512 pixels.
    """
    return TrainConfig(
        model=model,
        reward={"clip": 1.0, "hps": 1.0},
        policy=replace(releases()[model][1].settings, temperature=1.0, top_k=0, top_p=0.0),
        objective=GRPO(clip=0.2, kl_weight=0.01),
        engine=EngineConfig(
            learning_rate=1e-6,
            final_learning_rate=1e-6,
            micro_batch_size=4,
            activation_checkpointing=1,
            precision="bf16",
        ),
        groups_per_step=8,
        group_size=8,
        minibatch_size=32,
        sample_batch_size=16,
    )
