"""Runs on the released Infinity models. No paper has published settings for them; these are a place to start."""

from dataclasses import replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.families.library import releases
from sfumato.objectives import GRPO
from sfumato.training.train_config import TrainConfig

MICRO_BATCH = {"infinity-125m-256": 16, "infinity-2b-1024": 1, "infinity-8b-512": 1}
"""Number of images per forward and backward pass, which fits an 80 GB GPU (`sfumato plan`)."""
SAMPLE_BATCH = {"infinity-125m-256": 32, "infinity-2b-1024": 4, "infinity-8b-512": 4}
"""Number of images drawn at once."""


def infinity_recipe(model: str, lora_rank: int = 0) -> TrainConfig:
    """8 captions × 8 images per step, minibatches of 32, beta 0.01, epsilon 0.2; learning rate 1e-5 for the
    125M, 1e-6 for the 2B, 1e-4 for adapters.

    The guidance is the authors', the temperature is 1: at their 0.5 most bits are all but certain, and teach nothing.
    The nucleus of their sampler is for drawing only. A token of the policy is a bit, so the KL is exact.
    """
    small = model == "infinity-125m-256"
    rate = 1e-4 if lora_rank else 1e-5 if small else 1e-6
    return TrainConfig(
        model=model,
        reward={"clip": 1.0, "hps": 1.0},
        policy=replace(releases()[model][1].settings, temperature=1.0, top_p=0.0),
        objective=GRPO(clip=0.2, kl_weight=0.01, kl="exact"),
        engine=EngineConfig(
            learning_rate=rate,
            final_learning_rate=rate,
            micro_batch_size=MICRO_BATCH[model],
            activation_checkpointing=0 if small else 1,
            precision="bf16",
            lora_rank=lora_rank,
        ),
        groups_per_step=8,
        group_size=8,
        minibatch_size=32,
        sample_batch_size=SAMPLE_BATCH[model],
    )
