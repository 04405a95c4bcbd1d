"""Layers shared by the transformers of all families."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEW_ROWS = 256
"""Maximum number of positions, over all rows, for which `project` uses the convolution."""
MANY_WEIGHTS = 2**19
"""Minimum number of weights for which `project` uses the convolution: too many for the caches of a CPU core."""


def project(
    layer: nn.Linear, x: Float[Tensor, "R T C"], bias: Float[Tensor, " D"] | None = None
) -> Float[Tensor, "R T D"]:
    """Compute `layer(x)`, faster for a decoding step on the CPU, which has few positions and few rows.

    The plain product repacks the whole weight matrix, even for few positions. A 1x1 convolution over the weights, as
    if these were an image and the positions its filters, reads them in place: 16 positions run at 81 rather
    than 42 GFLOP/s, 64 at 106 rather than 60, 144 at 112 rather than 75, at a peak of 145 (two Zen 3 cores, oneDNN
    against MKL, 4096 outputs of 1024 inputs; benchmarks/README.md). Without oneDNN, the plain product is used.

    Args:
        layer: linear layer to apply.
        x: input vectors of T positions in R rows.
        bias: bias to use instead of the layer's own.
    """
    bias = layer.bias if bias is None else bias
    weight, (rows, positions, width) = layer.weight, x.shape
    quick = rows * positions <= FEW_ROWS and weight.numel() >= MANY_WEIGHTS and not torch.is_grad_enabled()
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not (quick and on_cpu) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    image = weight.view(1, -1, 1, width).permute(0, 3, 1, 2)  # (1, C, D, 1), channels last
    out = F.conv2d(image, x.reshape(-1, width, 1, 1))[0, :, :, 0].contiguous()
    return (out if bias is None else out + bias).unflatten(0, (rows, positions))


class KeyValueCache:
    """Keys and values of one attention layer, written in place to memory that is allocated once.

    The memory is allocated for `length` positions when the first ones are added, in their type, which under autocast is
    not the type of the network's weights.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, length: int):
        self.capacity = length
        self.length = 0

    @property
    def batch(self) -> int:
        """Number of rows in the cache."""
        return len(self.keys)

    def keep(self, rows: int) -> None:
        """Keep only the first `rows` rows."""
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def append(
        self, keys: Float[Tensor, "B H T d"], values: Float[Tensor, "B H T d"]
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Add T positions; returns keys and values of all N positions so far (views, not copies)."""
        if not self.length:
            batch, num_heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, num_heads, self.capacity, width)
            self.values = values.new_empty(batch, num_heads, self.capacity, width)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
