"""Convolutional autoencoders with vector quantisation: the frozen image tokenizers.

`MultiScaleVQVAE` is VAR's tokenizer (Tian et al., 2024, algorithms 1 and 2): an image becomes a pyramid of
token maps, each of which quantises what the coarser ones left over. `Encoder` and `Decoder` are the
residual networks of VQGAN (Esser et al., 2021), shared with the other families.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Shape of a multi-scale tokenizer; the defaults are the released `vae_ch160v4096z32`."""

    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """side of each token map, coarse to fine"""
    vocab_size: int = 4096
    """number of codes, shared by all scales"""
    latent_channels: int = 32
    """width of a code"""
    base_channels: int = 160
    """width of the first encoder level"""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """width of each level over `base_channels`; every level but the last halves the side"""
    num_res_blocks: int = 2
    """residual blocks a level in the encoder; the decoder has one more"""
    patch: int = 1
    """pixel-unshuffle factor before the encoder (and shuffle after the decoder); 1 is the published network"""
    norm_groups: int = 32
    """groups of each group norm"""
    num_phi: int = 4
    """residual "phi" convolutions, shared out over the scales"""
    phi_ratio: float = 0.5
    """weight of the convolution in phi; the identity has the rest"""

    @property
    def downsampling(self) -> int:
        """Pixels a side for each token of the finest map."""
        return self.patch * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.scales[-1] * self.downsampling


class ResBlock(nn.Module):
    """norm, swish, conv, twice, beside a shortcut."""

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
    """Blocks at one resolution, attention after each at the lowest, then an optional change of resolution."""

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
    """Block, attention, block."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.block1 = ResBlock(channels, channels, norm_groups)
        self.attention = AttentionBlock(channels, norm_groups)
        self.block2 = ResBlock(channels, channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))


class Downsample(nn.Module):
    """Halve the side with a strided convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side (nearest neighbour), then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, latent_channels, H / downsampling, W / downsampling)."""

    def __init__(self, config: VQVAEConfig):
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
    """The encoder's mirror image, with one more block a level; its output is not clamped."""

    def __init__(self, config: VQVAEConfig):
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


def phi_assignment(num_phi: int, num_scales: int) -> tuple[int, ...]:
    """Which of the `num_phi` shared convolutions each scale uses.

    The published rule takes the tick nearest to i / (S - 1); for four convolutions and ten scales two of those
    are ties that float64 rounding settles, so the arithmetic is kept to the letter: 0 0 1 1 1 2 2 3 3 3.
    """
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    ticks = np.linspace(margin, 1 - margin, num_phi)
    return tuple(int(np.argmin(np.abs(ticks - i / (num_scales - 1)))) for i in range(num_scales))


class MultiScaleQuantizer(nn.Module):
    """Residual quantisation over scales with one codebook (VAR, algorithms 1 and 2)."""

    usage: Tensor

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.scales = config.scales
        self.phi_ratio = config.phi_ratio
        self.phi_index = phi_assignment(config.num_phi, len(config.scales))
        channels = config.latent_channels
        self.codebook = nn.Embedding(config.vocab_size, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.num_phi))
        self.register_buffer("usage", torch.zeros(len(config.scales), config.vocab_size))

    def embed(self, tokens: Tensor) -> Float[Tensor, "B u C"]:
        """Codes of tokens (B, u), or the mean code of token distributions (B, u, V)."""
        return tokens @ self.codebook.weight if tokens.is_floating_point() else self.codebook(tokens)

    def nearest(self, vectors: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
        """Index of the code with the smallest Euclidean distance to each vector."""
        codes = self.codebook.weight
        distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
        return distances.argmin(1)

    def upsample(self, scale: int, codes: Float[Tensor, "B u C"]) -> Float[Tensor, "B C h w"]:
        """What scale number `scale` adds to the feature map: its codes enlarged (bicubic) and passed through phi."""
        side, full = self.scales[scale], self.scales[-1]
        h = codes.transpose(1, 2).unflatten(2, (side, side))
        if scale < len(self.scales) - 1:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        phi = self.phi[self.phi_index[scale]]
        return h * (1 - self.phi_ratio) + phi(h) * self.phi_ratio

    def downsample(self, scale: int, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C s s"]:
        """The feature map seen at the side of scale number `scale` (area average)."""
        if scale == len(self.scales) - 1:
            return features
        return F.interpolate(features, size=(self.scales[scale],) * 2, mode="area")

    def quantize(self, features: Float[Tensor, "B C h w"]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Quantise coarse to fine.

        Returns, a scale each: tokens (B, s·s), the feature map accumulated so far (B, C, h, w), and the
        vectors (B·s·s, C) that were quantised.
        """
        tokens, accumulated, quantized = [], [], []
        rest = features
        total = torch.zeros_like(features)
        for scale in range(len(self.scales)):
            vectors = self.downsample(scale, rest).permute(0, 2, 3, 1).flatten(0, 2)
            index = self.nearest(vectors).unflatten(0, (features.shape[0], -1))
            added = self.upsample(scale, self.embed(index))
            total = total + added
            rest = rest - added
            tokens.append(index)
            accumulated.append(total)
            quantized.append(vectors)
        return tokens, accumulated, quantized


class MultiScaleVQVAE(nn.Module):
    """VAR's tokenizer. Images are in [0, 1] outside and in [-1, 1] inside, as the weights expect."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.pre_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.quantizer = MultiScaleQuantizer(config)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Encoder features before quantisation, of images in [0, 1]."""
        return self.pre_conv(self.encoder(images * 2 - 1))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Tokens of images in [0, 1], scales concatenated coarse to fine, row-major inside a scale."""
        tokens, _, _ = self.quantizer.quantize(self.features(images))
        return torch.cat(tokens, dim=1)

    def reconstruct(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] decoded from an accumulated feature map."""
        return (self.decoder(self.post_conv(features)).clamp(-1, 1) + 1) / 2
