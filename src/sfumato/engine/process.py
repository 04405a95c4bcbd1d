"""Data parallelism: every worker draws and scores its share of the images, and gradients are summed.

Random choices are made from one stream that all workers share, so a run does not depend on their number (up to the
order of floating-point sums).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.errors import UserError
from sfumato.rollout import Conditions, Rollout

PATIENCE = timedelta(hours=4)
"""How long workers wait for one another: the main one alone measures and scores fixed images, by slow judges too."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among its peers; one process alone needs no process group."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This worker's consecutive part of `total` items, which the number of workers divides."""
        size = total // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors of equal shape, joined along the first axis in the order of their ranks."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_rollout(self, rollout: Rollout, conditions: Conditions) -> Rollout:
        """All workers' rollouts as one; `conditions` are those of all images."""
        return replace(
            rollout,
            conditions=conditions,
            tokens=self.gather(rollout.tokens),
            log_probs=self.gather(rollout.log_probs),
            entropy=self.gather(rollout.entropy),
        )

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the workers, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())


def join(device: str = "auto") -> Workers:
    """Join the process group that `torchrun` announces in the environment; alone without it.

    Args:
        device: "auto" takes the worker's own GPU if there is one, else the CPU; or any torch device.

    Raises:
        UserError: the device is not there.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {device!r} is not to be had ({str(error).splitlines()[0]}); give auto or cpu"
        ) from error
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if count > 1 and not dist.is_initialized():
        backend = "nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=count, timeout=PATIENCE)
    return Workers(rank=rank, count=count, device=found)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
