"""Runs on the released SimpleAR models, with the settings of Wang et al. (2025) where they are public."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.objectives import GRPO
from sfumato.settings import Settings
from sfumato.training.train_config import TrainConfig

MICRO_BATCH = {"simplear-0.5b-sft": 4, "simplear-1.5b-sft": 2}
"""Number of images per forward and backward pass, which fits an 80 GB GPU (`sfumato plan`)."""
LOGIT_POSITIONS = 256
"""Positions whose logits over 64000 codes are held at once: 62 MiB for each image, instead of 1 GiB."""


def simplear_recipe(model: str) -> TrainConfig:
    """8 captions × 4 images per step, minibatches of 16, beta 0.01, epsilon 0.2, learning rate 1e-6, guidance 6.

    The paper has 4 images a caption and learning rate 1e-6. Here the guided distribution over image codes is drawn from
    and scored, so a rollout can be used for two updates. Give NVIDIA's tokenizer: `--tokenizer FOLDER`.
    """
    return TrainConfig(
        model=model,
        reward={"clip": 1.0, "hps": 1.0},
        policy=Settings(guidance=6.0),
        objective=GRPO(clip=0.2, kl_weight=0.01),
        engine=EngineConfig(
            learning_rate=1e-6,
            final_learning_rate=1e-6,
            micro_batch_size=MICRO_BATCH[model],
            activation_checkpointing=1,
            logit_positions=LOGIT_POSITIONS,
            precision="bf16",
        ),
        groups_per_step=8,
        group_size=4,
        minibatch_size=16,
        sample_batch_size=8,
    )


def simplear_unguided_recipe(model: str) -> TrainConfig:
    """The public practice: images are drawn and scored without guidance, with the CLIP reward and a single update for
    each rollout. Evaluate with guidance 6, as the paper does."""
    config = simplear_recipe(model)
    return replace(config, reward={"clip": 1.0}, policy=Settings(guidance=None), minibatch_size=config.images_per_step)
