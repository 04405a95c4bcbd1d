"""Files of training state in checkpoints, and a digest that distinguishes models."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sfumato.errors import UserError
from sfumato.families.weight_files import fault_of
from sfumato.files import write_atomically


def fingerprint(model: torch.nn.Module) -> str:
    """Return a digest of up to 64 numbers from every tensor; further training changes it."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, state: dict) -> None:
    """Write nested dicts and lists of tensors, numbers and strings, atomically."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict:
    """Read what `save_state` wrote, without running any code in the file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: {path} does not exist; there is nothing to resume") from error
    except Exception as error:  # a damaged pickle can raise anything; the cause is kept
        raise UserError(f"checkpoint: {path} is damaged ({fault_of(error)}); delete it to resume without it") from error


class ShardWriter:
    """Writer of distributed checkpoints: every process writes its own parts, in the background."""

    def __init__(self):
        self._group: Any = None

    def save(self, state: dict[str, Any], folder: Path) -> Callable[[], object]:
        """Copy the parts to host memory and start to write them; return a function that waits until all have."""
        from torch.distributed.checkpoint import async_save

        if self._group is None:
            # The writing thread has a group of its own, because training sends messages at the same time.
            self._group = dist.new_group(backend="gloo")
        future = async_save(state, checkpoint_id=folder, process_group=self._group)
        return future.result  # pyright: ignore[reportAttributeAccessIssue] (a response only for uploads)
