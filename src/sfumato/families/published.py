"""Helpers for the families' `published.py`: load and write tensors by their published names."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sfumato.errors import UserError

StateDict = Mapping[str, Tensor]
"""Tensors by name."""


Published = Callable[[str], tuple[str, ...]]
"""Function that maps a name of ours to published names; several if our tensor joins them along the first axis."""


def published_state_dict(module: nn.Module, published: Published) -> dict[str, Tensor]:
    """Return the module's tensors under their published names; joined tensors are split again."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        names = published(name)
        tensors |= zip(names, tensor.chunk(len(names)), strict=True)
    return tensors


def load_strictly(module: nn.Module, state_dict: StateDict, published: Published, field: str) -> None:
    """Load all tensors of `state_dict` into `module` as float32 copies; names must match exactly.

    Raises:
        UserError: names or shapes differ; the message begins with `field`.
    """
    ours = module.state_dict()
    theirs = {key for name in ours for key in published(name)}
    missing, unknown = sorted(theirs - state_dict.keys()), sorted(state_dict.keys() - theirs)
    if missing or unknown:
        raise UserError(
            f"{field}: {len(missing)} keys are missing {missing[:3]} and {len(unknown)} are unknown {unknown[:3]}; "
            "give the complete state dict of one published model"
        )
    tensors = {}
    for name, own in ours.items():
        keys = published(name)
        parts = [state_dict[key].detach() for key in keys]  # a file may hold parameters
        expected = (own.shape[0] // len(keys), *own.shape[1:]) if own.ndim else ()
        for key, part in zip(keys, parts, strict=True):
            # In the published code, some parameters have leading or trailing axes of length 1.
            if tuple(s for s in part.shape if s > 1) != tuple(s for s in expected if s > 1):
                raise UserError(
                    f"{field}: {key} has shape {tuple(part.shape)}, not {tuple(expected)}; check whether "
                    "num_heads, the scales (patch_nums) or the grid belong to another model"
                )
        joined = torch.cat([part.reshape(expected) for part in parts])
        tensors[name] = joined.to(dtype=torch.float32, copy=len(parts) == 1)
    module.load_state_dict(tensors, assign=True)


def shape_of(state_dict: StateDict, key: str, field: str) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        UserError: there is no tensor of this name; the message begins with `field`.
    """
    if key not in state_dict:
        raise UserError(f"{field}: the state dict has no {key!r}; give one with the published names")
    return tuple(state_dict[key].shape)


def count_of(state_dict: StateDict, pattern: str) -> int:
    """Return one more than the largest number that the pattern's group matches in tensor names; 0 if none match."""
    numbers = [int(m[1]) for m in (re.match(pattern, key) for key in state_dict) if m]
    return max(numbers, default=-1) + 1


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply rules (pattern, replacement) to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def is_autoencoder(state_dict: StateDict) -> bool:
    """Return whether these are the tensors of a published tokenizer, whose first layers have similar names."""
    return not {"encoder.conv_in.weight", "encoder.conv_in.conv.weight"}.isdisjoint(state_dict)


def infer_autoencoder(state_dict: StateDict, level: str, block: str) -> tuple[int, tuple[int, ...], int, int]:
    """Infer the shape of an autoencoder from its encoder's tensors.

    Args:
        state_dict: tensors by published name.
        level: published name of the encoder's levels.
        block: published name of the residual blocks in a level.

    Returns:
        Base channels, channel multipliers, residual blocks per level, and patch size.
    """
    base, in_channels = shape_of(state_dict, "encoder.conv_in.weight", "tokenizer")[:2]
    levels = range(count_of(state_dict, rf"encoder\.{level}\.(\d+)\."))
    widths = [shape_of(state_dict, f"encoder.{level}.{i}.{block}.0.conv1.weight", "tokenizer")[0] for i in levels]
    num_blocks = count_of(state_dict, rf"encoder\.{level}\.0\.{block}\.(\d+)\.")
    return base, tuple(width // base for width in widths), num_blocks, round((in_channels / 3) ** 0.5)
