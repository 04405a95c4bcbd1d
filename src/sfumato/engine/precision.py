"""Precision of the arithmetic. The command line reads this file before it imports torch."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]
"""bf16 is bfloat16 in matrix products, convolutions and attention; auto is bf16 on a GPU and fp32 on the CPU."""


def autocast(device: "torch.device", precision: Precision) -> "torch.autocast":
    """Return a context with arithmetic in this precision; weights stay as they are."""
    import torch

    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
