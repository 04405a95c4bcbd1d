"""Infinity's tokenizer: binary spherical quantization over scales (Zhao et al., 2024; Han et al., 2024).

A token is the signs of its channels: a bit each, 1 for positive. No codebook is stored. An image is a pyramid of token
maps, each of which quantizes the residual of the coarser maps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.infinity.schedules import SCHEDULES, Scales
from sfumato.families.shared import check_tokenizer_sizes
from sfumato.nn.autoencoder import Decoder, Encoder, downsampling, images_at_once, in_slices


@dataclass(frozen=True, kw_only=True)
class BSQConfig:
    """Shape of a bitwise tokenizer; the defaults are those of the released `infinity_vae_d32reg`."""

    scales: Scales = SCHEDULES["1.0"]
    """height and width of each token map, coarse to fine"""
    latent_channels: int = 32
    """number of channels of the feature map, each of which is quantized to a bit"""
    base_channels: int = 128
    """width of the first encoder level"""
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    """width of each level as a multiple of `base_channels`; each level except the last halves the side"""
    num_res_blocks: int = 2
    """residual blocks per level in the encoder; the decoder has one more per level"""
    patch: int = 1
    """factor of the pixel unshuffle before the encoder and the pixel shuffle after the decoder; 1 in the published
    networks"""
    token_patch: int = 1
    """side of the square of the feature map that a token covers: 2 in the tokenizer of the 8B, whose tokens have the
    bits of four positions"""
    norm_groups: int = 32
    """number of groups in each group norm"""

    def __post_init__(self):
        check_tokenizer_sizes(self)
        for size in self.scales:
            if len(size) != 2 or min(size) < 1:
                raise UserError(f"scales: {size} is not the size of a token map; give height and width, at least 1")

    @property
    def bits(self) -> int:
        """Number of bits in a token."""
        return self.latent_channels * self.token_patch**2

    @property
    def sizes(self) -> Scales:
        """Height and width of the feature map at each scale."""
        return tuple((h * self.token_patch, w * self.token_patch) for h, w in self.scales)

    @property
    def downsampling(self) -> int:
        """Width and height in pixels of a position of the feature map."""
        return downsampling(self)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self.sizes[-1]
        return height * self.downsampling, width * self.downsampling


class BSQTokenizer(nn.Module):
    """Infinity's tokenizer. Its interface uses images in [0, 1]; its networks use [-1, 1], as the weights expect.

    The u = h·w·D bits of a scale are row-major; the D bits of a token are adjacent.
    """

    def __init__(self, config: BSQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, attention=False)
        self.decoder = Decoder(config, attention=False)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d h w"]:
        """Return the encoder features of images in [0, 1], before quantization."""
        return self.encoder(images * 2 - 1)

    def upsample(self, scale: int, bits: Int[Tensor, "B u"]) -> Float[Tensor, "B d h w"]:
        """Return what scale number `scale` adds to the feature map: codes of length 1, enlarged (bilinear)."""
        codes = (bits.float() * 2 - 1) / self.config.latent_channels**0.5
        codes = codes.unflatten(1, (*self.config.scales[scale], -1)).permute(0, 3, 1, 2)
        return self.enlarge(F.pixel_shuffle(codes, self.config.token_patch))

    def enlarge(self, codes: Float[Tensor, "B d h w"]) -> Float[Tensor, "B d H W"]:
        """Return codes at the size of the feature map (bilinear)."""
        return _resize(codes, self.config.sizes[-1])

    def downsample(self, scale: int, features: Float[Tensor, "B d h w"]) -> Float[Tensor, "B N D"]:
        """Return what the generator reads for scale number `scale`: the feature map so far at its size (bilinear, also
        where it shrinks), as N = h·w vectors."""
        return _tokens(_resize(features, self.config.sizes[scale]), self.config.token_patch)

    def shrink(self, scale: int, rest: Float[Tensor, "B d H W"]) -> Float[Tensor, "B d h w"]:
        """Return what scale number `scale` quantizes of the rest of a feature map (area average)."""
        return F.interpolate(rest, size=self.config.sizes[scale], mode="area")

    def bits_of(self, scale: int, rest: Float[Tensor, "B d H W"]) -> Int[Tensor, "B u"]:
        """Return the bits of scale number `scale`: the signs of the rest of a feature map at its size."""
        return (_tokens(self.shrink(scale, rest), self.config.token_patch) > 0).long().flatten(1)

    def quantize(self, features: Float[Tensor, "B d h w"]) -> tuple[list[Tensor], list[Tensor]]:
        """Quantize features from coarse to fine.

        Returns lists with one item per scale: bits (B, u), and the feature map accumulated so far (B, d, h, w).
        """
        bits, accumulated, total = [], [], torch.zeros_like(features)
        for scale in range(len(self.config.scales)):
            bits.append(self.bits_of(scale, features - total))
            total = total + self.upsample(scale, bits[-1])
            accumulated.append(total)
        return bits, accumulated

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as bits: scales concatenated from coarse to fine."""

        def encode(part: Tensor) -> Tensor:
            return torch.cat(self.quantize(self.features(part))[0], dim=1)

        return in_slices(encode, images, images_at_once(self.config, images.shape[2] * images.shape[3]))

    def decode_features(self, features: Float[Tensor, "B d h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode an accumulated feature map to images in about [-1, 1], in float32 and not clamped."""
        return self.decoder(features).float()

    def reconstruct(self, features: Float[Tensor, "B d h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode an accumulated feature map to images in [0, 1], in float32."""
        pixels = features.shape[2] * features.shape[3] * self.config.downsampling**2
        decoded = in_slices(self.decode_features, features, images_at_once(self.config, pixels))
        return (decoded.clamp(-1, 1) + 1) / 2


def _resize(x: Float[Tensor, "B d h w"], size: tuple[int, int]) -> Float[Tensor, "B d H W"]:
    return F.interpolate(x, size=size, mode="bilinear")


def _tokens(x: Float[Tensor, "B d h w"], patch: int) -> Float[Tensor, "B N D"]:
    """Return vectors of tokens that cover `patch` × `patch` positions; entry c·p² + p·i + j is channel c at (i, j)."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)
