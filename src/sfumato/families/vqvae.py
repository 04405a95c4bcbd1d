"""The multi-scale image tokenizer of VAR and Switti.

`MultiScaleVQVAE` is VAR's tokenizer (Tian et al., 2024, algorithms 1 and 2). It encodes an image as a pyramid of token
maps, each of which quantizes the residual of the coarser maps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.families.shared import check_tokenizer_sizes
from sfumato.nn.autoencoder import Decoder, Encoder, downsampling, images_at_once, in_slices


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Shape of a multi-scale tokenizer; the defaults are those of the released `vae_ch160v4096z32`."""

    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """side of each token map, coarse to fine"""
    vocab_size: int = 4096
    """number of codes, shared by all scales"""
    latent_channels: int = 32
    """width of a code"""
    base_channels: int = 160
    """width of the first encoder level"""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """width of each level as a multiple of `base_channels`; each level except the last halves the side"""
    num_res_blocks: int = 2
    """residual blocks per level in the encoder; the decoder has one more per level"""
    patch: int = 1
    """factor of the pixel unshuffle before the encoder and the pixel shuffle after the decoder; 1 in the published
    network"""
    norm_groups: int = 32
    """number of groups in each group norm"""
    num_phi: int = 4
    """number of residual "phi" convolutions, distributed over the scales"""
    phi_ratio: float = 0.5
    """weight of the convolution in phi; the identity has weight 1 - phi_ratio"""

    def __post_init__(self):
        check_tokenizer_sizes(self)

    @property
    def downsampling(self) -> int:
        """Width and height in pixels of a token of the finest map."""
        return downsampling(self)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.scales[-1] * self.downsampling


def phi_assignment(num_phi: int, num_scales: int) -> tuple[int, ...]:
    """Return which of the `num_phi` shared convolutions each scale uses.

    The published rule selects the tick nearest to i / (S - 1). For four convolutions and ten scales, two of these are
    ties that float64 rounding decides, so the arithmetic is exactly as published. The result is 0 0 1 1 1 2 2 3 3 3.
    """
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    ticks = np.linspace(margin, 1 - margin, num_phi)
    return tuple(int(np.argmin(np.abs(ticks - i / (num_scales - 1)))) for i in range(num_scales))


class MultiScaleQuantizer(nn.Module):
    """Residual quantization over scales with one codebook (VAR, algorithms 1 and 2)."""

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
        """Return the codes of tokens (B, u), or the mean codes of token distributions (B, u, V)."""
        return tokens @ self.codebook.weight if tokens.is_floating_point() else self.codebook(tokens)

    def nearest(self, vectors: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
        """Return the index of the code with the smallest Euclidean distance to each vector."""
        codes = self.codebook.weight
        distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
        return distances.argmin(1)

    def upsample(self, scale: int, codes: Float[Tensor, "B u C"]) -> Float[Tensor, "B C h w"]:
        """Return what scale number `scale` adds to the feature map: its codes, enlarged (bicubic), after phi."""
        side, full = self.scales[scale], self.scales[-1]
        h = codes.transpose(1, 2).unflatten(2, (side, side))
        if scale < len(self.scales) - 1:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        phi = self.phi[self.phi_index[scale]]
        return h * (1 - self.phi_ratio) + phi(h) * self.phi_ratio

    def downsample(self, scale: int, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C s s"]:
        """Reduce the feature map to the side of scale number `scale` (area average)."""
        if scale == len(self.scales) - 1:
            return features
        return F.interpolate(features, size=(self.scales[scale],) * 2, mode="area")

    def codes_before(self, tokens: Sequence[Int[Tensor, "B _"]]) -> Float[Tensor, "B T C"] | None:
        """Return what a generator reads to predict these scales from the coarser ones (teacher forcing): for each scale
        except the first, the feature map so far at its side. None if there is only the first.

        Args:
            tokens: tokens of the first scales, in order.
        """
        features, inputs = None, []
        for scale, unit in enumerate(tokens[:-1]):
            added = self.upsample(scale, self.embed(unit))
            features = added if features is None else features + added
            inputs.append(self.downsample(scale + 1, features).flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1) if inputs else None

    def accumulate(self, tokens: Sequence[Tensor]) -> Float[Tensor, "B C h w"]:
        """Return the feature map of all scales, from tokens (B, u) or distributions over the vocabulary (B, u, V)."""
        return torch.stack([self.upsample(scale, self.embed(unit)) for scale, unit in enumerate(tokens)]).sum(0)

    def quantize(self, features: Float[Tensor, "B C h w"]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Quantize features from coarse to fine.

        Returns lists with one item per scale: tokens (B, s·s), the feature map accumulated so far (B, C, h, w), and the
        vectors (B·s·s, C) that were quantized.
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
    """VAR's tokenizer. Its interface uses images in [0, 1]; its networks use [-1, 1], as the weights expect."""

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
        """Return the encoder features of images in [0, 1], before quantization."""
        return self.pre_conv(self.encoder(images * 2 - 1))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens: scales concatenated from coarse to fine, row-major within a scale."""

        def encode(part: Tensor) -> Tensor:
            return torch.cat(self.quantizer.quantize(self.features(part))[0], dim=1)

        return in_slices(encode, images, images_at_once(self.config, images.shape[2] * images.shape[3]))

    @torch.no_grad()
    def count_usage(self, batches: Iterable[Float[Tensor, "B 3 H W"]]) -> None:
        """Count how often each scale uses each code over all images; inference does not use the counts."""
        units, usage = [side * side for side in self.config.scales], self.quantizer.usage
        usage.zero_()
        for images in batches:
            for scale, tokens in enumerate(self.encode(images).split(units, dim=1)):
                usage[scale] += torch.bincount(tokens.flatten(), minlength=usage.shape[1])

    def decode_features(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode an accumulated feature map to images in about [-1, 1], in float32 and not clamped."""
        return self.decoder(self.post_conv(features)).float()

    def reconstruct(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode an accumulated feature map to images in [0, 1], in float32."""
        pixels = features.shape[2] * features.shape[3] * self.config.downsampling**2
        decoded = in_slices(self.decode_features, features, images_at_once(self.config, pixels))
        return (decoded.clamp(-1, 1) + 1) / 2
