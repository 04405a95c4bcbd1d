"""Files of training state in checkpoints, and a digest that distinguishes models."""

import hashlib
from pathlib import Path

import torch

from sfumato.errors import UserError
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint: {path} is damaged ({reason}); delete it to resume from the previous checkpoint"
        ) from error
