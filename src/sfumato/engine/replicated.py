"""Replicated parameters: every process holds all of them, and gradients are summed while they are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn

from sfumato.engine.process import Process


class Replicated:
    """Layout in which every process holds all parameters."""

    def __init__(self, process: Process):
        self.process = process
        self._last = False
        self._pending: list[dist.Work] = []

    def place(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Move a network to this process's device; the gradients of its trainable parameters will be summed."""
        network.to(self.process.device)
        if self.process.count > 1:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._reduce)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Back-propagate the loss of a micro-batch; with the last one, each gradient is summed once it is complete.

        Each gradient is its own message, in place: a copy in one piece would take as much memory as all gradients.
        The order of the messages is that of the backward pass, which is the same in every process.
        """
        self._last = last
        loss.backward()
        for work in self._pending:
            work.wait()
        self._pending.clear()

    @contextmanager
    def gathered(self, network: nn.Module) -> Iterator[None]:
        """Keep all parameters of a network in memory, which they always are."""
        yield

    def _reduce(self, parameter: Tensor) -> None:
        if self._last and parameter.grad is not None:
            work = dist.all_reduce(parameter.grad, async_op=True)
            assert work is not None
            self._pending.append(work)


def full(tensor: Tensor) -> Tensor:
    """Return a whole tensor that may be sharded; every process must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of `tensor`, in the same form."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return whole
    # All processes have the whole tensor, so nothing is sent.
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


def snapshot(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU of a whole tensor that may be sharded; every process must call this."""
    return full(tensor.detach()).to("cpu", copy=True)
