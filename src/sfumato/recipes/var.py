"""Runs on the released VAR models, with the settings of Gallici & Sáez de Ocáriz Borde (2025)."""

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
