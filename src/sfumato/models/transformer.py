"""What the transformers of all families share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

PIECE = 128
"""outputs that `project` computes at a time"""
FEW_ROWS = 128
"""rows up to which it does so"""


def project(layer: nn.Linear, x: Float[Tensor, "R T C"]) -> Float[Tensor, "R T D"]:
    """`layer(x)` of a layer without bias, quick for a decoding step on the CPU: one position of a few rows.

    The plain product repacks the whole weight matrix for a handful of rows. In pieces that stay in the cache it takes
    half the time: 16 rows ran at 70 rather than 40 GFLOP/s on two cores (Zen 3, MKL), at a peak of 150.
    """
    rows, positions, _ = x.shape
    plain = positions > 1 or rows > FEW_ROWS or x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if plain or layer.out_features % PIECE:
        return layer(x)
    weights = layer.weight.unflatten(0, (-1, PIECE)).transpose(1, 2)  # (pieces, C, 128)
    pieces = torch.bmm(x.transpose(0, 1).expand(len(weights), -1, -1), weights)
    return pieces.transpose(0, 1).flatten(1)[:, None]


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
