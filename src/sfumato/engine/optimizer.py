"""The optimizer, and one step of it, shared by training and pre-training."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.replicated import full
from sfumato.errors import UserError


def build_optimizer(config: EngineConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """Build the optimizer of a run.

    Raises:
        UserError: torchao is not installed.
    """
    options = {"lr": config.learning_rate, "betas": (0.9, 0.95), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            'optimizer: adamw8bit needs torchao; install it with pip install "sfumato[low-memory]"'
        ) from error
    return AdamW8bit(parameters, **options)


def descend(optimizer: Optimizer, loss: Tensor, learning_rate: float, max_grad_norm: float) -> float:
    """Back-propagate a loss, clip the gradients and update the parameters; return the gradient norm before clipping.

    Raises:
        UserError: the gradient is not finite.
    """
    loss.backward()
    norm = clip(optimizer, max_grad_norm).item()
    step(optimizer, learning_rate, norm)
    return norm


def clip(optimizer: Optimizer, max_grad_norm: float) -> Float[Tensor, ""]:
    """Clip the gradients; return their norm before. It is not read, so the GPU need not finish first."""
    parameters: list[torch.nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    return full(clip_grad_norm_(parameters, max_grad_norm))


def step(optimizer: Optimizer, learning_rate: float, norm: float) -> None:
    """Update the parameters and clear the gradients, whose norm was `norm`.

    Raises:
        UserError: the norm is not finite; the parameters are left unchanged.
    """
    if not norm < float("inf"):
        raise UserError(
            f"learning_rate: at {learning_rate} the gradient norm became {norm}; lower the learning rate or raise the "
            "temperature"
        )
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # read by compiled code, as torchao's
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
