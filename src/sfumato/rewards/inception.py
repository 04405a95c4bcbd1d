"""Inception-v3 as published by TensorFlow on 2015-12-05, the network that defines FID, sFID and the Inception Score.

The layers have the names of `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity), whose weights load
strictly.
"""

import pickle
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.rewards import needs

SIDE = 299
"""Side in pixels of the network's input."""
CLASSES = 1008
"""Number of outputs: ImageNet's 1000 classes and a few unused ones."""
WEIGHTS = "toshas/torch-fidelity/weights-inception-2015-12-05-6726825d.pth"


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return F.relu(self.bn(self.conv(x)))


Layer = tuple[str, int, int | tuple[int, int]]
"""Name, output channels and kernel size; the input is padded to keep its size."""


class Mixed(nn.Module):
    """Parallel branches whose output channels are concatenated.

    A branch is a chain of layers. Its last element may be a pair of layers that both read the previous layer.
    """

    def __init__(
        self,
        inputs: int,
        branches: Sequence[Sequence[Layer | tuple[Layer, Layer]]],
        pool: Literal["average", "maximum", "halve"],
        pooled: int = 0,
    ):
        """Create a block.

        Args:
            inputs: number of input channels.
            branches: chains of layers.
            pool: type of the last branch: an average or maximum over 3 × 3 followed by a 1 × 1 convolution, or
                ("halve") the maximum alone with stride 2; the last layer of every branch then has stride 2 as well.
            pooled: number of output channels of that convolution.
        """
        super().__init__()
        self.pool = pool
        self.chains: list[list[tuple[str, ...]]] = []
        for branch in branches:
            channels, chain = inputs, []
            for number, step in enumerate(branch):
                layers: Sequence[Layer] = (step,) if isinstance(step[0], str) else step  # pyright: ignore
                halves = pool == "halve" and number == len(branch) - 1
                for name, outputs, size in layers:
                    height, width = (size, size) if isinstance(size, int) else size
                    padding = 0 if halves else (height // 2, width // 2)
                    self.add_module(name, Convolution(channels, outputs, (height, width), 2 if halves else 1, padding))
                chain.append(tuple(name for name, _, _ in layers))
                channels = layers[-1][1]
            self.chains.append(chain)
        if pool != "halve":
            self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        outputs = []
        for chain in self.chains:
            y = x
            for names in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            outputs.append(y)
        if self.pool == "halve":
            outputs.append(F.max_pool2d(x, 3, stride=2))
        elif self.pool == "maximum":  # as in the last block of the published graph
            outputs.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)))
        return torch.cat(outputs, dim=1)


def _mixed_35(inputs: int, pooled: int) -> Mixed:
    branches = [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
    ]
    return Mixed(inputs, branches, "average", pooled)


def _mixed_17(width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    branches = [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        ],
    ]
    return Mixed(768, branches, "average", 192)


def _mixed_8(inputs: int, pool: Literal["average", "maximum"]) -> Mixed:
    row, column = (1, 3), (3, 1)
    branches = [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ],
    ]
    return Mixed(inputs, branches, pool, 192)


class Inception(nn.Module):
    """The network. It maps images in [0, 1] to pooled and spatial features and logits."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_35(192, 32), _mixed_35(256, 64), _mixed_35(288, 64)
        doubled = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        self.Mixed_6a = Mixed(288, [[("branch3x3", 384, 3)], doubled], "halve")
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = _mixed_17(128), _mixed_17(160), _mixed_17(160)
        self.Mixed_6e = _mixed_17(192)
        halved = [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3),
            ],
        ]
        self.Mixed_7a = Mixed(768, halved, "halve")
        self.Mixed_7b, self.Mixed_7c = _mixed_8(1280, "average"), _mixed_8(2048, "maximum")
        self.fc = nn.Linear(2048, CLASSES)

    def forward(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 2048"], Float[Tensor, "B 2023"], Float[Tensor, "B 1008"]]:
        """Return pooled features; the spatial features of sFID, which are the first 7 channels of `mixed_6/conv`
        (Nash et al. 2021) with 17 × 17 positions each; and logits without the bias, which the original code of the
        Inception Score omits as well."""
        x = resize_as_tensorflow(images.mul(255).round(), SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7]
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pooled = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)  # channels last, as in published moments
        return pooled, spatial, pooled @ self.fc.weight.T


def load_inception(weights: str | None, field: str) -> Inception:
    """Load the network with its weights.

    Args:
        weights: a file, or owner/repository/file on the hub; the published weights if not given.
        field: setting that the weights come from, for messages.

    Raises:
        UserError: the weights are not available, or belong to another network.
    """
    try:
        tensors = torch.load(needs.file(weights or WEIGHTS), map_location="cpu", weights_only=True)
        model = Inception()
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{field}: {' '.join(str(error).split())[:200]}; give Inception's weights, "
            "pt_inception-2015-12-05-6726825d.pth from the releases of pytorch-fid or torch-fidelity"
        ) from error
    return model.eval().requires_grad_(False)


def resize_as_tensorflow(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C S S"]:
    """Resize bilinearly without half-pixel centers or antialiasing, like `tf.image.resize_bilinear` of TensorFlow 1."""
    for axis in (2, 3):
        size = images.shape[axis]
        places = torch.arange(side, device=images.device) * (size / side)
        low = places.long()
        high = (low + 1).clamp_max(size - 1)
        share = (places - low).view(-1, 1) if axis == 2 else places - low
        first, second = images.index_select(axis, low), images.index_select(axis, high)
        images = first + (second - first) * share
    return images
