"""Functions of logits that never hold the logits of all positions at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.capabilities import Reduction


def reduced(
    head: Callable[[Tensor], Tensor], x: Float[Tensor, "B T C"], reduction: Reduction
) -> Float[Tensor, "B T *F"]:
    """Return a function of `head(x)`. The backward pass computes the logits of each chunk again.

    With 64000 codes and 4096 positions, the logits of one image take 1 GiB in float32, and their gradient another.
    """
    parts = []
    for start in range(0, x.shape[1], reduction.positions):
        span = slice(start, min(start + reduction.positions, x.shape[1]))

        def reduce(part: Tensor, span: slice = span) -> Tensor:
            return reduction.function(head(part), span)

        part = x[:, span]
        parts.append(checkpoint(reduce, part, use_reentrant=False) if torch.is_grad_enabled() else reduce(part))
    return torch.cat(parts, dim=1)
