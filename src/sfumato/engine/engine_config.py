"""Settings for updating the parameters."""

import math
from dataclasses import dataclass
from typing import Literal

from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Optimizer, precision, memory and processes."""

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
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw, or adamw8bit: its state takes 2 instead of 8 bytes for each parameter (needs torchao)"""
    micro_batch_size: int = 32
    """number of images per forward and backward pass; a smaller number saves memory and changes nothing else"""
    activation_checkpointing: int = 0
    """recompute the activations of every N-th block in the backward pass: 1 saves most memory; 0 keeps them all"""
    logit_positions: int = 0
    """score this many tokens of an image at a time, so that only their logits are in memory; 0 scores all at once.
    Worth it for large vocabularies"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """precision of the arithmetic: fp32, or bf16 with autocast; weights and optimizer state stay in fp32"""
    recompute_log_probs: bool = False
    """score the drawn tokens again before the first update, as updates will, and take ratios to these
    log-probabilities; in bf16 they differ from those of drawing"""
    compile: bool = False
    """compile each block of the network with torch.compile"""
    cuda_graphs: bool = True
    """on a GPU, replay the decoding steps of next-token models as CUDA graphs"""
    lora_rank: int = 0
    """train low-rank adapters of this rank instead of all weights; 0 trains all. The reference is then the same
    network without adapters"""
    lora_alpha: int = 32
    """scale of the adapters: their product is multiplied by alpha / rank"""
    lora_targets: tuple[str, ...] = ()
    """layers that get adapters, e.g. qkv proj; those that the family names if not given"""
    ema_decay: float = 0.0
    """decay of a moving average of the weights, which is saved too (--weights ema); 0 keeps none"""
    ema_start: int = 0
    """number of updates before the average begins"""
    offload_reference: bool = False
    """keep the reference in host memory except while it scores"""
    sharding: Literal["none", "full", "hybrid"] = "none"
    """divide weights, gradients and optimizer state among the processes: full, or hybrid (among those of a machine)"""
    gather_for_rollouts: bool = True
    """hold all sharded weights of the policy while images are drawn; otherwise every token gathers every block"""

    def validate(self) -> None:
        """Check the ranges of all fields.

        Raises:
            UserError: a field is out of range.
        """
        for name in ("learning_rate", "max_grad_norm", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)} is not positive; give a number above 0")
        for name in ("learning_rate", "final_learning_rate", "weight_decay"):
            if math.isinf(getattr(self, name)):
                raise UserError(f"{name}: {getattr(self, name)} is not finite; give a number, such as 1e-4")
        at_least("micro_batch_size", self.micro_batch_size, 1)
        for name in ("warmup_steps", "weight_decay", "final_learning_rate", "activation_checkpointing"):
            at_least(name, getattr(self, name), 0)
        for name in ("lora_rank", "ema_start", "logit_positions"):
            at_least(name, getattr(self, name), 0)
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: {self.ema_decay} is not from 0 to 1; 0.999 averages about 1000 updates")
        if self.lora_targets and not self.lora_rank:
            raise UserError(f"lora_targets: {' '.join(self.lora_targets)} get no adapters; set lora_rank too")
        if self.offload_reference and (self.sharding != "none" or self.lora_rank):
            reason = f"sharding {self.sharding} divides it" if self.sharding != "none" else "adapters need none"
            raise UserError(f"offload_reference: the reference cannot be moved, because {reason}; leave it off")


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise a UserError that names the field if the value is below the minimum, NaN, or no number."""
    if not isinstance(value, int | float):  # from a file that a person has edited
        raise UserError(f"{name}: {value!r} is not a number; give one of at least {minimum}")
    if not value >= minimum:
        raise UserError(f"{name}: {value} is too small; give at least {minimum}")


def check_seed(seed: int) -> None:
    """Raise a UserError if a seed is negative, or too large to count upwards from it in 64 bits."""
    at_least("seed", seed, 0)
    if seed >= 2**62:
        raise UserError(f"seed: {seed} is too large; give a number below 2**62")
