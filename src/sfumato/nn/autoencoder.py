"""The convolutional autoencoder inside every tokenizer: VQGAN's residual networks (Esser et al., 2021)."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class AutoencoderShape(Protocol):
    """Fields of a tokenizer's config that an encoder and its decoder need."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def base_channels(self) -> int: ...
    @property
    def channel_multipliers(self) -> tuple[int, ...]: ...
    @property
    def num_res_blocks(self) -> int: ...
    @property
    def patch(self) -> int: ...
    @property
    def norm_groups(self) -> int: ...


def downsampling(shape: AutoencoderShape) -> int:
    """Return the width and height in pixels of a position of the feature map."""
    return shape.patch * 2 ** (len(shape.channel_multipliers) - 1)


SLICE_BYTES = 2**29
"""Largest size in bytes of a feature map in float32, over all images of a slice. A block holds about five at a time."""


def images_at_once(shape: AutoencoderShape, pixels: int) -> int:
    """Return the number of images per slice, at least 1, for which no feature map is larger than `SLICE_BYTES`.

    Args:
        shape: shape of the autoencoder.
        pixels: height times width of an image.
    """
    positions = pixels // shape.patch**2  # of the finest level; the side of each further level is half as long
    # The decoder doubles the side of a level's output before the channels change.
    values = [width * positions // 4 ** max(i - 1, 0) for i, width in enumerate(shape.channel_multipliers)]
    return max(1, SLICE_BYTES // (4 * shape.base_channels * max(values)))


def in_slices(function: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> Tensor:
    """Return `function(batch)`, computed for `size` rows at a time, so that memory does not grow with the batch."""
    return torch.cat([function(part) for part in batch.split(size)])


def arrange(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return `x` in the memory layout in which convolutions are fastest: channels-last on CUDA, as tensor cores read.

    Convolutions, sums and resampling keep the layout of what they read, but the group norm of torch 2.13 does not.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def normalize_groups(norm: nn.GroupNorm, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return `norm(x)` in the type of `x`, arranged for a convolution.

    Autocast would return float32, and the swish would then read and write twice as many bytes. The statistics are
    float32 in any case.
    """
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        return arrange(F.group_norm(x, norm.num_groups, weight, bias, norm.eps))


class ResBlock(nn.Module):
    """Residual block: norm, swish and convolution, twice, plus a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        h = self.conv1(F.silu(normalize_groups(self.norm1, x)))
        return self.shortcut(x) + self.conv2(F.silu(normalize_groups(self.norm2, h)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        qkv = self.qkv(normalize_groups(self.norm, x)).flatten(2).transpose(1, 2)
        # Fused attention needs channels that are adjacent in memory: on CUDA at most 256 for flash attention, and any
        # number for memory-efficient attention.
        query, key, value = (part[:, None] for part in qkv.contiguous().chunk(3, dim=2))  # each (B, 1, H·W, C)
        h = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention at the lowest one, then an optional resampling."""

    def __init__(self, blocks: Sequence[ResBlock], attentions: Sequence[AttentionBlock], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Bottleneck(nn.Module):
    """Residual block, attention if there is any, residual block."""

    def __init__(self, channels: int, norm_groups: int, attention: bool):
        super().__init__()
        self.block1 = ResBlock(channels, channels, norm_groups)
        self.attention = AttentionBlock(channels, norm_groups) if attention else nn.Identity()
        self.block2 = ResBlock(channels, channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))


class Downsample(nn.Module):
    """Halve the side with a strided convolution, padded only on the right and at the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side (nearest neighbor), then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, latent_channels, H / downsampling, W / downsampling)."""

    def __init__(self, config: AutoencoderShape, attention: bool = True):
        super().__init__()
        base, groups = config.base_channels, config.norm_groups
        widths = [base * m for m in config.channel_multipliers]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, base, 3, padding=1)
        levels = []
        channels = base
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            blocks = [ResBlock(channels if j == 0 else width, width, groups) for j in range(config.num_res_blocks)]
            attentions = [AttentionBlock(width, groups) for _ in blocks] if last and attention else []
            levels.append(Level(blocks, attentions, None if last else Downsample(width)))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.middle = Bottleneck(channels, groups, attention)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        h = self.conv_in(arrange(F.pixel_unshuffle(x, self.patch)))
        for level in self.levels:
            h = level(h)
        h = self.middle(h)
        return self.conv_out(F.silu(normalize_groups(self.norm_out, h)))


class Decoder(nn.Module):
    """Mirror image of the encoder, with one more block per level; its output is not clamped."""

    def __init__(self, config: AutoencoderShape, attention: bool = True):
        super().__init__()
        groups = config.norm_groups
        widths = [config.base_channels * m for m in config.channel_multipliers]
        channels = widths[-1]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = Bottleneck(channels, groups, attention)
        levels = []  # coarse to fine
        for i, width in reversed(list(enumerate(widths))):
            blocks = [ResBlock(channels if j == 0 else width, width, groups) for j in range(config.num_res_blocks + 1)]
            lowest = i == len(widths) - 1
            attentions = [AttentionBlock(width, groups) for _ in blocks] if lowest and attention else []
            levels.append(Level(blocks, attentions, Upsample(width) if i > 0 else None))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3 * config.patch**2, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        h = self.middle(self.conv_in(arrange(x)))
        for level in self.levels:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(normalize_groups(self.norm_out, h))), self.patch)
