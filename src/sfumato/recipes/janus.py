"""Runs on the released Janus-Pro models, with the settings of T2I-R1 (Jiang et al., 2025) where they are public."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.objectives import GRPO
from sfumato.objectives.reasoning_grpo import ReasoningGRPO
from sfumato.settings import Settings
from sfumato.training.train_config import TrainConfig


def janus_recipe(model: str, lora_rank: int = 0) -> TrainConfig:
    """8 captions × 8 images per step, minibatches of 32, beta 0.01, epsilon 0.2, learning rate 1e-6 (1e-5 for
    adapters), guidance 5.

    T2I-R1 has 8 images a caption, beta 0.01 and learning rate 1e-6. Here the guided distribution that drew the images
    is the one that is scored, so ratios are exact and a rollout can be used for two updates.
    """
    rate = 1e-5 if lora_rank else 1e-6
    return TrainConfig(
        model=model,
        reward={"clip": 1.0, "hps": 1.0},
        policy=Settings(guidance=5.0),
        objective=GRPO(clip=0.2, kl_weight=0.01),
        engine=EngineConfig(
            learning_rate=rate,
            final_learning_rate=rate,
            micro_batch_size=4,
            activation_checkpointing=1,
            precision="bf16",
            lora_rank=lora_rank,
        ),
        groups_per_step=8,
        group_size=8,
        minibatch_size=32,
        sample_batch_size=16,
    )


def janus_unguided_recipe(model: str) -> TrainConfig:
    """The public practice: images are drawn with guidance 5, but the conditional distribution alone is scored
    (`--score-guidance 0`), with a single update for each rollout."""
    config = janus_recipe(model)
    return replace(config, score_guidance=0.0, minibatch_size=config.images_per_step)


def janus_t2i_r1_recipe(model: str) -> TrainConfig:
    """T2I-R1: a model with a text before each image learns both, with the same KL weight, over the tokens of both.
    Images are scored without guidance, with a single update for each rollout.

    The logits of the text have a vocabulary of 102400, so they are held for 128 positions at a time.
    """
    config = janus_unguided_recipe(model)
    engine = replace(config.engine, logit_positions=128)
    return replace(config, objective=ReasoningGRPO(clip=0.2, kl_weight=0.01), engine=engine)
