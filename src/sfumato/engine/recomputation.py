"""Activation checkpointing: activations inside blocks are recomputed in the backward pass instead of kept."""

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


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return wrapped
