"""The linear layer of all transformers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEW_ROWS = 256
"""Maximum number of positions, over all rows, for which a layer uses the convolution."""
MANY_WEIGHTS = 2**19
"""Minimum number of weights for which a layer uses the convolution: too many for the caches of a CPU core."""
HAS_ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """A linear layer that is faster for a decoding step on the CPU, which has few positions and few rows.

    The plain product repacks the whole weight matrix, even for few positions. A 1x1 convolution over the weights, as
    if these were an image and the positions its filters, reads them in place: 16 positions run at 81 rather
    than 42 GFLOP/s, 64 at 106 rather than 60, 144 at 112 rather than 75, at a peak of 145 (two Zen 3 cores, oneDNN
    against MKL, 4096 outputs of 1024 inputs; benchmarks/README.md). Without oneDNN, the plain product is used.
    """

    def forward(self, input: Float[Tensor, "*N C"]) -> Float[Tensor, "*N D"]:
        weight, width = self.weight, self.in_features
        quick = input.numel() <= FEW_ROWS * width and weight.numel() >= MANY_WEIGHTS and not torch.is_grad_enabled()
        on_cpu = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32 and HAS_ONEDNN
        if not (quick and on_cpu) or torch.is_autocast_enabled("cpu"):
            return F.linear(input, weight, self.bias)
        image = weight.view(1, -1, 1, width).permute(0, 3, 1, 2)  # (1, C, D, 1), channels last
        out = F.conv2d(image, input.reshape(-1, width, 1, 1))[0, :, :, 0].contiguous()
        return (out if self.bias is None else out + self.bias).unflatten(0, input.shape[:-1])
