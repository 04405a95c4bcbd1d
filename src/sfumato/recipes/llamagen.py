"""Runs on the released LlamaGen models, with the settings of AR-GRPO (Yuan et al., 2025, section 4)."""

from dataclasses import replace

from sfumato.objectives.grpo import LossConfig
from sfumato.training.config import GRPOConfig

MICRO_BATCH = {"b": 32, "l": 16, "xl": 8}
"""images with gradients at once that an 80 GB GPU holds, by size"""

REWARD = {"ar-grpo": 1.0}
"""the paper's eight parts: CLIP, HPSv2, MANIQA and a vision-language judge; `--reward clip 1 hps 1` is lighter"""


def llamagen_recipe(size: str, pixels: int) -> GRPOConfig:
    """Class-conditional: 8 classes × 8 images, learning rate 1e-5, decay 0.05, beta 0.1, epsilon 0.2, guidance 2."""
    return GRPOConfig(
        model=f"llamagen-{size}-{pixels}",
        caption_template="a photo of {name}",
        reward=REWARD,
        steps=1000,
        labels_per_step=8,
        group_size=8,
        minibatch_size=64,
        micro_batch_size=MICRO_BATCH[size] // (2 if pixels == 384 else 1),
        temperature=1.0,
        guidance=2.0,
        loss=LossConfig(clip=0.2, kl_weight=0.1),
        learning_rate=1e-5,
        final_learning_rate=1e-5,
        weight_decay=0.05,
        precision="bf16",
    )


def llamagen_t2i_recipe() -> GRPOConfig:
    """Text-conditional, as the paper has it; the published script differs: guidance 4.0 and beta 1.0."""
    return replace(llamagen_recipe("xl", 256), model="llamagen-xl-t2i", micro_batch_size=4)
