"""Settings for updating the parameters."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Optimizer, precision and memory."""

    learning_rate: float = 1e-4
    """peak learning rate of AdamW"""
    final_learning_rate: float = 1e-4
    """learning rate at the last step, reached along a half cosine"""
    warmup_steps: int = 0
    """number of steps of linear warm-up"""
    weight_decay: float = 0.0
    """weight decay of AdamW"""
    max_grad_norm: float = 1.0
    """largest gradient norm; larger gradients are scaled down to it"""
    micro_batch_size: int = 32
    """number of images per forward and backward pass; a smaller number saves memory and changes nothing else"""
    activation_checkpointing: int = 0
    """recompute the activations of every N-th block in the backward pass: 1 saves most memory; 0 keeps them all"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """precision of the arithmetic: fp32, or bf16 with autocast; weights and optimizer state stay in fp32"""
