"""The image tokenizer of LlamaGen (Sun et al., 2024, section 3.1) and Janus-Pro: one token map, with codes compared by
angle."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.families.shared import check_tokenizer_sizes
from sfumato.nn.autoencoder import Decoder, Encoder, downsampling, images_at_once, in_slices


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Shape of a single-scale tokenizer; the defaults are those of the released VQ-16."""

    grid_size: int = 16
    """side of the token map"""
    vocab_size: int = 16384
    """number of codes"""
    code_width: int = 8
    """width of a code"""
    latent_channels: int = 256
    """channels between encoder and quantizer, and between quantizer and decoder"""
    base_channels: int = 128
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

    def __post_init__(self):
        check_tokenizer_sizes(self)

    @property
    def downsampling(self) -> int:
        """Width and height of a token in pixels."""
        return downsampling(self)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.grid_size * self.downsampling


class UnitQuantizer(nn.Module):
    """A codebook on the unit sphere. As published, codes are stored unnormalized and normalized when used."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.codebook = nn.Embedding(config.vocab_size, config.code_width)

    def codes(self) -> Float[Tensor, "V C"]:
        """Return all codes, normalized to unit length."""
        return F.normalize(self.codebook.weight, dim=-1)

    def embed(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Return the unit-length codes of tokens."""
        return F.normalize(self.codebook(tokens), dim=-1)

    def nearest(self, vectors: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
        """Return the index of the code nearest to each unit vector, i.e. at the smallest angle."""
        return (vectors @ self.codes().T).argmax(1)

    def quantize(self, features: Float[Tensor, "B C h w"]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Quantize unit-length features in one stage.

        Returns lists with one item each, in the same form as `MultiScaleQuantizer.quantize`: tokens (B, h·w), quantized
        features (B, C, h, w), and the vectors (B·h·w, C) that were quantized.
        """
        vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
        tokens = self.nearest(vectors).unflatten(0, (features.shape[0], -1))
        return [tokens], [self.embed(tokens).transpose(1, 2).reshape(features.shape)], [vectors]


class VQModel(nn.Module):
    """A single-scale tokenizer. Its interface uses images in [0, 1]; its networks use [-1, 1], as weights expect."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.pre_conv = nn.Conv2d(config.latent_channels, config.code_width, 1)
        self.post_conv = nn.Conv2d(config.code_width, config.latent_channels, 1)
        self.quantizer = UnitQuantizer(config)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the unit-length features of images in [0, 1], before quantization."""
        return F.normalize(self.pre_conv(self.encoder(images * 2 - 1)), dim=1)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Encode images in [0, 1] as tokens, row by row."""

        def encode(part: Tensor) -> Tensor:
            return self.quantizer.quantize(self.features(part))[0][0]

        return in_slices(encode, images, images_at_once(self.config, images.shape[2] * images.shape[3]))

    def decode(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens to images in [0, 1]."""
        side = self.config.grid_size
        return self.reconstruct(self.quantizer.embed(tokens).transpose(1, 2).unflatten(2, (side, side)))

    def decode_features(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode quantized features to images in about [-1, 1], in float32 and not clamped."""
        return self.decoder(self.post_conv(features)).float()

    def reconstruct(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode quantized features to images in [0, 1], in float32."""
        pixels = features.shape[2] * features.shape[3] * self.config.downsampling**2
        decoded = in_slices(self.decode_features, features, images_at_once(self.config, pixels))
        return (decoded.clamp(-1, 1) + 1) / 2
