"""Runs on the released VAR models, with the settings of Gallici & Sáez de Ocáriz Borde (2025)."""

from sfumato.training.config import GRPOConfig

REWARDS = {"bright": "brightness", "dark": "darkness", "colorful": "colorfulness"}


def var_recipe(depth: int, target: str) -> GRPOConfig:
    """32 labels × 16 images a step, minibatches of 32, learning rate 1e-4, beta 0.2, tau 0.7, epsilon 0.2."""
    return GRPOConfig(
        model=f"var-d{depth}",
        reward={REWARDS[target]: 1.0},
        micro_batch_size={16: 32, 20: 16, 24: 16, 30: 8, 36: 2}[depth],
        precision="bf16",
    )
