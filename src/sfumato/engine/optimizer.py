"""One step of an optimizer, the same in all pre-training."""

from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer


def descend(optimizer: Optimizer, loss: Tensor, learning_rate: float, max_grad_norm: float) -> float:
    """Back-propagate, clip, update and clear; returns the norm of the gradient before clipping.

    Raises:
        RuntimeError: the gradient is not finite.
    """
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip_grad_norm_(parameters, max_grad_norm, error_if_nonfinite=True)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()
