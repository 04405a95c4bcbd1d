"""Rotary position embedding (Su et al., 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(x: Float[Tensor, "R T H d"], rotation: Float[Tensor, "T d2 2"]) -> Float[Tensor, "R T H d"]:
    """Rotate each pair of channels by the angle of its position. Zeros in `rotation` set the vector to zero."""
    pairs, angles = x.float().unflatten(-1, (-1, 2)), rotation.float()[:, None]
    if torch.compiler.is_compiling():  # compilers cannot fuse complex numbers, which are one kernel instead of seven
        (first, second), (cosine, sine) = pairs.unbind(-1), angles.unbind(-1)
        turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(angles))
    return turned.flatten(-2).type_as(x)
