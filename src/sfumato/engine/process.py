"""Division of work and communication among processes.

All processes make random choices from the same random stream, so a run does not depend on the number of processes,
except for the order of floating-point sums.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Request
from sfumato.rollout import Rollout

PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another. All work is shared, so the longest wait is one slow batch of a judge."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among its peers. A single process needs no process group."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints to the terminal."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Return this process's consecutive part of `total` items, a multiple of the number of processes."""
        size = total // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def padded_share(self, total: int) -> Int[Tensor, " N"]:
        """Return the positions of this process's consecutive part of `total` items.

        All parts have the same size: if `total` is not a multiple of the number of processes, the last item is
        repeated. `gather` joins the parts again; only its first `total` rows count.
        """
        size = -(-total // self.count)
        return torch.arange(self.rank * size, (self.rank + 1) * size).clamp_max(total - 1)

    def gather(self, tensor: Tensor) -> Tensor:
        """Join the tensors of all processes, which must have equal shapes, along the first axis in rank order."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_rollout(self, rollout: Rollout, request: Request) -> Rollout:
        """Join the rollouts of all processes; `request` is the request for all images. Padding beyond it is dropped."""
        parts = {
            name: self.gather(getattr(rollout, name))[: len(request)] for name in ("tokens", "log_probs", "entropy")
        }
        return replace(rollout, request=request, **parts)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient with its sum over all processes, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)


def find_device(device: str = "auto") -> torch.device:
    """Return a device by name, ready to use.

    Args:
        device: "auto" for this process's own GPU if there is one, otherwise the CPU; or any torch device.

    Raises:
        UserError: the device is not available.
    """
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        ready = torch.device(device)
        torch.empty(1, device=ready)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {device!r} is not available ({reason}); use auto or cpu") from error
    if ready.type == "cuda":
        torch.cuda.set_device(ready)
    return ready


def join(device: str = "auto") -> Process:
    """Join the process group that `torchrun` sets in the environment; without `torchrun`, this is a single process.

    Raises:
        UserError: the device is not available.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ready = find_device(device)
    if count > 1 and not dist.is_initialized():
        backend = "nccl" if ready.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=count, timeout=PATIENCE)
    return Process(rank=rank, count=count, device=ready)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
