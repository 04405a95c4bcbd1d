"""How blocks run: recomputed in the backward pass instead of kept in memory, and compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Sequence[nn.Module], every: int) -> None:
    """Let the first, and then every `every`-th, of these blocks recompute its activations (Chen et al. 2016).

    Gradients are the same, for one more forward pass of these blocks. Without gradients nothing changes, so decoding
    is as fast as before.

    Args:
        blocks: blocks of a network, in order.
        every: 1 recomputes all blocks and saves the most memory.
    """
    for block in blocks[::every]:
        block.forward = _recomputed(block.forward)


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Let `torch.compile` fuse the kernels of each of these blocks; equal blocks share their compiled code.

    Sizes are compiled in: next-scale models have one for each scale. Call this after `recompute_blocks`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=False)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return wrapped
