"""The convolutional autoencoder inside every tokenizer: VQGAN's residual networks (Esser et al., 2021)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, 1, channels, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)  # each (B, 1, H·W, C)
        h = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(h[:, 0].transpose(-1, -2).reshape(x.shape))


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
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.block1 = ResBlock(channels, channels, norm_groups)
        self.attention = AttentionBlock(channels, norm_groups)
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

    def __init__(self, config: AutoencoderShape):
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
            attentions = [AttentionBlock(width, groups) for _ in blocks] if last else []
            levels.append(Level(blocks, attentions, None if last else Downsample(width)))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.middle = Bottleneck(channels, groups)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.levels:
            h = level(h)
        h = self.middle(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Mirror image of the encoder, with one more block per level; its output is not clamped."""

    def __init__(self, config: AutoencoderShape):
        super().__init__()
        groups = config.norm_groups
        widths = [config.base_channels * m for m in config.channel_multipliers]
        channels = widths[-1]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = Bottleneck(channels, groups)
        levels = []  # coarse to fine
        for i, width in reversed(list(enumerate(widths))):
            blocks = [ResBlock(channels if j == 0 else width, width, groups) for j in range(config.num_res_blocks + 1)]
            attentions = [AttentionBlock(width, groups) for _ in blocks] if i == len(widths) - 1 else []
            levels.append(Level(blocks, attentions, Upsample(width) if i > 0 else None))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3 * config.patch**2, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        h = self.middle(self.conv_in(x))
        for level in self.levels:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)
