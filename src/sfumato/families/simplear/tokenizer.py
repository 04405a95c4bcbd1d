"""SimpleAR's image tokenizer: NVIDIA's Cosmos-1.0 DV8x16x16 for single frames, with finite scalar quantization.

The published network is one for video. With a single frame, which causal convolutions repeat, it is a network of
images: convolutions over time become products at each position, attention over time becomes its value projection, and
the Haar transform of the repeated frame one of the image. Whatever is linear is multiplied out when the weights are
read (`published.py`), so this is the autoencoder of the other tokenizers.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.families.shared import check_tokenizer_sizes
from sfumato.nn.autoencoder import (
    AttentionBlock,
    Decoder,
    Encoder,
    Level,
    downsampling,
    images_at_once,
    in_slices,
    normalize_groups,
)


@dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """Shape of the tokenizer; the defaults are those of the released DV8x16x16 for images of 1024 pixels."""

    grid_size: int = 64
    """side of the token map"""
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """number of values of each channel of a code"""
    latent_channels: int = 16
    """channels between encoder and quantizer, and between quantizer and decoder"""
    base_channels: int = 128
    """width of the first encoder layer"""
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    """width of each level as a multiple of `base_channels`; each level except the last halves the side"""
    num_res_blocks: int = 2
    """residual blocks per level in the encoder; the decoder has one more per level"""
    patch: int = 4
    """factor of the pixel unshuffle before the encoder and the pixel shuffle after the decoder"""
    norm_groups: int = 1
    """number of groups in each group norm"""

    def __post_init__(self):
        check_tokenizer_sizes(self)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def downsampling(self) -> int:
        """Width and height of a token in pixels."""
        return downsampling(self)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.grid_size * self.downsampling


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al., 2023): each channel is rounded to one of a few values.

    The code of an index is given by a formula; the first channel changes fastest.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = levels

    def embed(self, tokens: Int[Tensor, "*N"]) -> Float[Tensor, "*N C"]:
        """Return the codes of tokens, with values from -1 to 1."""
        digits, rest = [], tokens
        for level in self.levels:
            digits.append((rest % level - level // 2) / (level // 2))
            rest = rest // level
        return torch.stack(digits, dim=-1)

    def bound(self, latents: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        """Return what is rounded: latents in the range of the values, in float32."""
        parts = []
        for channel, level in zip(latents.float().unbind(-1), self.levels, strict=True):
            half, offset = (level - 1) * 1.001 / 2, 0.5 * (1 - level % 2)
            parts.append((channel + math.atanh(offset / half)).tanh() * half - offset)
        return torch.stack(parts, dim=-1)

    def nearest(self, latents: Float[Tensor, "*N C"]) -> Int[Tensor, "*N"]:
        """Return the index of the code nearest to each latent vector."""
        tokens, weight = torch.zeros(latents.shape[:-1], dtype=torch.long, device=latents.device), 1
        for digits, level in zip(self.bound(latents).round().long().unbind(-1), self.levels, strict=True):
            tokens, weight = tokens + weight * (digits + level // 2), weight * level
        return tokens


class Mixing(nn.Module):
    """Adds a linear function of the normalized channels at each position: attention over a single frame."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.conv(normalize_groups(self.norm, x))


class CosmosTokenizer(nn.Module):
    """SimpleAR's tokenizer. Its interface uses images in [0, 1]; its networks use [-1, 1], as the weights expect."""

    def __init__(self, config: CosmosConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, attention=False)
        self.decoder = Decoder(config, attention=False)
        channels, groups = config.base_channels * config.channel_multipliers[-1], config.norm_groups
        for part in (self.encoder, self.decoder):
            attention = nn.Sequential(AttentionBlock(channels, groups), Mixing(channels, groups))
            part.middle.register_module("attention", attention)
        # Of the published steps that double the side, all but the first doubled the frames too.
        for level in self.decoder.levels[1:-1]:
            assert isinstance(level, Level)
            assert level.resample is not None
            width = level.resample.get_parameter("conv.weight").shape[0]
            level.resample = nn.Sequential(nn.Conv2d(width, width, 1), level.resample)
        self.pre_conv = nn.Conv2d(config.latent_channels, len(config.levels), 1)
        self.post_conv = nn.Conv2d(len(config.levels), config.latent_channels, 1)
        self.quantizer = FSQ(config.levels)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the features of images in [0, 1], before quantization."""
        return self.pre_conv(self.encoder(images * 2 - 1))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Encode images in [0, 1] as tokens, row by row."""

        def encode(part: Tensor) -> Tensor:
            return self.quantizer.nearest(self.features(part).flatten(2).transpose(1, 2))

        return in_slices(encode, images, images_at_once(self.config, images.shape[2] * images.shape[3]))

    def decode(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens to images in [0, 1]."""
        side = self.config.grid_size
        codes = self.quantizer.embed(tokens).transpose(1, 2).unflatten(2, (side, side))
        decoded = in_slices(self.decode_features, codes, images_at_once(self.config, self.config.image_size**2))
        return (decoded.clamp(-1, 1) + 1) / 2

    def decode_features(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode quantized features to images in about [-1, 1], in float32 and not clamped."""
        return self.decoder(self.post_conv(features)).float()
