"""LlamaGen's image tokenizer (Sun et al., 2024, section 3.1): one token map, codes compared by angle."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.nn.autoencoder import Decoder, Encoder, downsampling


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Shape of a single-scale tokenizer; the defaults are the released VQ-16."""

    grid_size: int = 16
    """side of the token map"""
    vocab_size: int = 16384
    """number of codes"""
    code_width: int = 8
    """width of a code"""
    latent_channels: int = 256
    """channels between encoder and quantiser, and between quantiser and decoder"""
    base_channels: int = 128
    """width of the first encoder level"""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """width of each level over `base_channels`; every level but the last halves the side"""
    num_res_blocks: int = 2
    """residual blocks a level in the encoder; the decoder has one more"""
    patch: int = 1
    """pixel-unshuffle factor before the encoder (and shuffle after the decoder); 1 is the published network"""
    norm_groups: int = 32
    """groups of each group norm"""

    @property
    def downsampling(self) -> int:
        """Pixels a side for each token."""
        return downsampling(self)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.grid_size * self.downsampling


class UnitQuantizer(nn.Module):
    """A codebook on the unit sphere. Codes are stored at any length and normalised when used, as published."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.codebook = nn.Embedding(config.vocab_size, config.code_width)

    def codes(self) -> Float[Tensor, "V C"]:
        """All codes at unit length."""
        return F.normalize(self.codebook.weight, dim=-1)

    def embed(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Unit-length codes of tokens."""
        return F.normalize(self.codebook(tokens), dim=-1)

    def nearest(self, vectors: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
        """Index of the code nearest to each unit vector: the one at the smallest angle."""
        return (vectors @ self.codes().T).argmax(1)

    def quantize(self, features: Float[Tensor, "B C h w"]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Quantise unit-length features, in one stage.

        Returns, as lists of one: tokens (B, h·w), the quantised features (B, C, h, w), and the vectors (B·h·w, C)
        that were quantised; the form is that of `MultiScaleQuantizer.quantize`.
        """
        vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
        tokens = self.nearest(vectors).unflatten(0, (features.shape[0], -1))
        return [tokens], [self.embed(tokens).transpose(1, 2).reshape(features.shape)], [vectors]


class VQModel(nn.Module):
    """LlamaGen's tokenizer. Images are in [0, 1] outside and in [-1, 1] inside, as the weights expect."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.pre_conv = nn.Conv2d(config.latent_channels, config.code_width, 1)
        self.post_conv = nn.Conv2d(config.code_width, config.latent_channels, 1)
        self.quantizer = UnitQuantizer(config)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Unit-length features before quantisation, of images in [0, 1]."""
        return F.normalize(self.pre_conv(self.encoder(images * 2 - 1)), dim=1)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Tokens of images in [0, 1], row by row."""
        return self.quantizer.quantize(self.features(images))[0][0]

    def decode_features(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """What the decoder makes of quantised features: images about [-1, 1], not clamped."""
        return self.decoder(self.post_conv(features))

    def reconstruct(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] decoded from quantised features."""
        return (self.decode_features(features).clamp(-1, 1) + 1) / 2
