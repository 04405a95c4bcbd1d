"""Division of work and communication among processes.

All processes make random choices from the same random stream, so a run does not depend on the number of processes,
except for the order of floating-point sums.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from sfumato.engine.watch import WORK, Watch
from sfumato.errors import SharedError, UserError
from sfumato.request import Request
from sfumato.rollout import Rollout

JOINED = itertools.count()
"""Number of process groups so far. All use the launcher's store, each with keys of its own."""
BACKSTOP = timedelta(days=1)
"""Time limit of the process group itself, which cannot tell a slow process from one that hangs; `Watch` can."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among its peers. A single process needs no process group."""

    rank: int
    count: int
    device: torch.device
    watch: Watch | None = field(default=None, repr=False, compare=False)
    """supervision of the other processes, if there are any"""

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
        self.meet()
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_rollout(self, rollout: Rollout, request: Request) -> Rollout:
        """Join the rollouts of all processes; `request` is the request for all images. Padding beyond it is dropped."""
        names = ["tokens", "log_probs", "entropy", *(["context"] if rollout.context is not None else [])]
        parts = {name: self.gather(getattr(rollout, name))[: len(request)] for name in names}
        masks = {name: self.gather(mask)[: len(request)] for name, mask in rollout.parts.items()}
        return replace(rollout, request=request, parts=masks, **parts)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)

    def work(self) -> None:
        """Tell the other processes that this one begins a piece of work that may take long."""
        if self.watch is not None:
            self.watch.work()

    def meet(self) -> None:
        """Tell the other processes that this one begins an exchange with all of them, and may have to wait for them."""
        if self.watch is not None:
            self.watch.meet()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in which processes do not communicate; if it fails on one of them, it fails on all.

        Raises:
            SharedError: bad input on another process, or on several; the message names the first rank, unless all
                have the same message.
        """
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except UserError as caught:
            error = caught
        if not self.any(error is not None):
            return
        messages: list[str | None] = [None] * self.count
        self.meet()
        dist.all_gather_object(messages, None if error is None else str(error))
        rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
        raise SharedError(message if set(messages) == {message} else f"rank {rank}: {message}") from error


def find_device(device: str = "auto") -> torch.device:
    """Return a device by name, ready to use, and make a GPU the current device of this process.

    On a GPU, float32 products and convolutions outside autocast then use TF32: they read float32 numbers, but multiply
    only their 11 leading binary digits, which is several times faster. NVIDIA_TF32_OVERRIDE=0 in the environment turns
    this off.

    Args:
        device: "auto" for this process's own GPU if there is one, otherwise the CPU; or any torch device.

    Raises:
        UserError: the device is not available.
    """
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    ready = check_device("device", device)
    if ready.type == "cuda":
        torch.cuda.set_device(ready)
        torch.set_float32_matmul_precision("high")  # convolutions use TF32 by default
    return ready


def check_device(field: str, device: str) -> torch.device:
    """Return a torch device by name; `field` is the setting that names it.

    Raises:
        UserError: the device is not available.
    """
    try:
        ready = torch.empty(1, device=torch.device(device))
        ready.cpu()  # the device meta holds no data
        return ready.device  # of "cuda", the current GPU with its number
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{field}: {device!r} is not available ({reason}); use auto or cpu") from error


def join(device: str = "auto", patience: float = WORK) -> Process:
    """Join the process group that `torchrun` sets in the environment; without `torchrun`, this is a single process.

    Args:
        device: name of the device, see `find_device`.
        patience: seconds that a process may keep the others waiting without beginning any work; then all end.

    Raises:
        UserError: the device is not available.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Process(rank=rank, count=count, device=find_device(device))
    store, _, _ = next(dist.rendezvous("env://", timeout=BACKSTOP))
    prefix = f"sfumato/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(JOINED)}"
    watch = Watch(rank, count, patience, prefix)
    try:
        ready = find_device(device)
    except UserError as error:
        watch.fail(error)
        raise
    # Checkpoints are written from host memory.
    backend = "cpu:gloo,cuda:nccl" if ready.type == "cuda" else "gloo"
    group_store = dist.PrefixStore(prefix, store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=count, timeout=BACKSTOP)
    return Process(rank=rank, count=count, device=ready, watch=watch)


@contextmanager
def joined(device: str = "auto", patience: float = WORK) -> Iterator[Process]:
    """Join the process group for the duration of a block, see `join`. If the block fails on one process, all end.

    Raises:
        UserError: the device is not available.
    """
    process = join(device, patience)
    try:
        yield process
        process.wait()
    except SharedError:  # all processes raise it
        leave(process)
        raise
    except BaseException as error:
        # The process group is not left: this would wait for the others.
        if process.watch is not None:
            process.watch.fail(error)
        raise
    leave(process)


def leave(process: Process) -> None:
    """Leave the process group, if there is one. All processes must call this together."""
    if process.watch is not None:
        process.watch.stop()
        dist.destroy_process_group()
