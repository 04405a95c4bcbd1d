"""What the transformers of all families share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PIECE = 128
"""outputs that `project` computes at a time"""
FEW_ROWS = 256
"""positions of all rows together up to which it does so"""


def project(
    layer: nn.Linear, x: Float[Tensor, "R T C"], bias: Float[Tensor, " D"] | None = None
) -> Float[Tensor, "R T D"]:
    """`layer(x)`, quick for a decoding step on the CPU: few positions of few rows.

    The plain product repacks the whole weight matrix, however few they are. In pieces of the weights that stay in the
    cache, 16 positions run at 60 rather than 41 GFLOP/s, 36 at 90 rather than 64, and 144 at 125 rather than 89, at a
    peak of 145 (two Zen 3 cores, MKL, 4096 outputs of 1024 inputs); from 400 on nothing is gained.

    Args:
        layer: what multiplies.
        x: positions of each row.
        bias: in place of the layer's own.
    """
    bias = layer.bias if bias is None else bias
    rows, positions, _ = x.shape
    plain = rows * positions > FEW_ROWS or layer.out_features % PIECE or torch.is_grad_enabled()
    if plain or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, layer.weight, bias)
    weights = layer.weight.unflatten(0, (-1, PIECE)).transpose(1, 2)  # (pieces, C, 128)
    repeated = x.flatten(0, 1).expand(len(weights), -1, -1)
    if bias is None:
        pieces = torch.bmm(repeated, weights)
    else:
        pieces = torch.baddbmm(bias.unflatten(0, (-1, 1, PIECE)), repeated, weights)
    return pieces.transpose(0, 1).flatten(1).unflatten(0, (rows, positions))


class KeyValueCache:
    """Keys and values of one attention layer, written in place into memory allocated once.

    The memory is allocated for `length` positions when the first come, in their type: under autocast that is not the
    type of the network's weights.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, length: int):
        self.capacity = length
        self.length = 0

    @property
    def batch(self) -> int:
        """Rows held."""
        return len(self.keys)

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` rows."""
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def append(
        self, keys: Float[Tensor, "B H T d"], values: Float[Tensor, "B H T d"]
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Add T positions; returns all N so far (views, not copies)."""
        if not self.length:
            batch, num_heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, num_heads, self.capacity, width)
            self.values = values.new_empty(batch, num_heads, self.capacity, width)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
