"""One optimizer step, shared by training and pre-training."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from sfumato.errors import UserError


def descend(optimizer: Optimizer, loss: Tensor, learning_rate: float, max_grad_norm: float) -> float:
    """Back-propagate a loss, then call `clip_and_step`; return the gradient norm before clipping.

    Raises:
        UserError: the gradient is not finite.
    """
    loss.backward()
    return clip_and_step(optimizer, learning_rate, max_grad_norm)


def clip_and_step(optimizer: Optimizer, learning_rate: float, max_grad_norm: float) -> float:
    """Clip the gradients, update the parameters and clear the gradients; return the gradient norm before clipping.

    Raises:
        UserError: the gradient is not finite; the parameters are left unchanged.
    """
    parameters: list[torch.nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip_grad_norm_(parameters, max_grad_norm).item()
    if not norm < float("inf"):
        raise UserError(
            f"learning_rate: at {learning_rate} the gradient norm became {norm}; lower the learning rate or raise the "
            "temperature"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return norm
