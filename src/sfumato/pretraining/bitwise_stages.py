"""Pre-training of bitwise models: binary spherical quantization, and generators that correct their own bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining
from sfumato.pretraining.tokenizer_stage import AutoencoderTrainer, AutoencoderTraining, reconstruction_loss
from sfumato.request import Inputs


@dataclass(frozen=True, kw_only=True)
class BitTokenizerTraining(AutoencoderTraining):
    """Settings for training a bitwise tokenizer."""

    entropy_weight: float = 0.1
    """weight of the loss that makes bits certain for each image, and balanced over all images"""


@dataclass(frozen=True, kw_only=True)
class BitGeneratorTraining(GeneratorTraining):
    """Settings for training a bitwise generator.

    Token noise, own tokens and flips change what the finer scales have to predict: the bits that make up for them.
    """

    bit_flips: float = 0.3
    """largest share of input bits to flip (Infinity's self-correction). The share of each scale of an image is drawn
    from 0 to this number; the bits of the finer scales, which are to be predicted, are those of the residual that the
    flipped bits leave"""


# Tokenizers are typed as Any, as in `tokenizer_stage.py`; they have the methods of Infinity's.

SHARPNESS = 100.0
"""Inverse temperature of the soft bits in the entropy loss, as published."""


def entropy_loss(directions: Float[Tensor, "B d h w"]) -> Float[Tensor, ""]:
    """Return the entropy of each position's soft bits, less that of their means over the batch, in units of 100 nats.

    The bits of a vector z of length 1 are independent, each 1 with probability sigmoid(4·100·z / √d); the entropy of a
    position is the sum over its d bits (Zhao et al., 2024, section 4.2, and Infinity's tokenizer).
    """
    logits = 4 * SHARPNESS / directions.shape[1] ** 0.5 * directions
    # In terms of logits, because the probabilities themselves round to 0 and 1, where the gradient is not finite.
    each = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
    p = logits.sigmoid().mean((0, 2, 3)).clamp(1e-6, 1 - 1e-6)
    return (each + (p * p.log() + (1 - p) * (1 - p).log()).sum()) / SHARPNESS


def straight_through(directions: Float[Tensor, "B d h w"]) -> Float[Tensor, "B d h w"]:
    """Return the codes of vectors of length 1: their signs, divided by √d. The gradient is that of the identity."""
    codes = torch.where(directions > 0, 1.0, -1.0) / directions.shape[1] ** 0.5
    return directions + (codes - directions).detach()


def bitwise_loss(
    model: Any, images: Float[Tensor, "B 3 H W"], config: BitTokenizerTraining
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the loss of a bitwise tokenizer on images in [0, 1], and statistics.

    Each scale quantizes the direction of what the coarser scales leave, and the gradient of the decoder passes straight
    through it. Commitment and entropy are means over the scales.
    """
    features = model.features(images)
    total, commitment, entropy, balance = torch.zeros_like(features), [], [], []
    for scale in range(len(model.config.scales)):
        directions = F.normalize(model.shrink(scale, features - total.detach()), dim=1)
        codes = straight_through(directions)
        commitment.append(F.mse_loss(directions, codes.detach()))
        entropy.append(entropy_loss(directions))
        ones = (codes.detach() > 0).float().mean((0, 2, 3))
        balance.append((1 - (2 * ones - 1).abs()).mean())
        total = total + model.enlarge(codes)
    reconstruction, decibels = reconstruction_loss(model.decode_features(total), images, config)
    loss = (
        reconstruction
        + config.commitment_weight * torch.stack(commitment).mean()
        + config.entropy_weight * torch.stack(entropy).mean()
    )
    stats = {
        "loss": loss.item(),
        "psnr": decibels,
        "quantization_error": torch.stack(commitment).mean().item(),
        "feature_rms": features.detach().square().mean().sqrt().item(),
        "bit_balance": torch.stack(balance).mean().item(),
    }
    return loss, stats


class BitTokenizerTrainer(AutoencoderTrainer):
    """A bitwise tokenizer and its optimizer."""

    config: BitTokenizerTraining

    def loss(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        return bitwise_loss(self.model, images, self.config)


def random_flips(count: int, units: Sequence[int], most: float, rng: torch.Generator) -> Bool[Tensor, "B L"]:
    """Return which bits of this many images to flip; the share of each scale of an image is drawn from 0 to `most`."""
    shares = most * torch.rand(count, len(units), generator=rng)
    return torch.rand(count, sum(units), generator=rng) < shares.repeat_interleave(torch.tensor(units), dim=1)


def self_corrected(
    tokenizer: Any, features: Float[Tensor, "B d h w"], flips: Bool[Tensor, "B L"]
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Return bits to predict, and bits to read, some of which are flipped (Infinity, section 3.3).

    Each scale quantizes the rest of the features that the bits read so far leave, so the finer scales correct what the
    flips have changed. Flipped bits themselves are predicted as they were.

    Args:
        tokenizer: bitwise tokenizer.
        features: features of images before quantization.
        flips: True for the bits to flip.
    """
    config, total, targets, read = tokenizer.config, torch.zeros_like(features), [], []
    for scale, flipped in enumerate(flips.split([h * w * config.bits for h, w in config.scales], dim=1)):
        bits = tokenizer.bits_of(scale, features - total)
        targets.append(bits)
        read.append(bits ^ flipped)
        total = total + tokenizer.upsample(scale, read[-1])
    return torch.cat(targets, dim=1), torch.cat(read, dim=1)


class BitGeneratorTrainer(GeneratorTrainer):
    """A bitwise generator that learns to correct bits, the average of its weights, and its optimizer."""

    config: BitGeneratorTraining

    @torch.no_grad()
    def encoded(self) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
        """Return the bits and labels of every item in the source; keep the features, which the flips need."""
        tokenizer: Any = self.model.tokenizer
        features, labels = [], []
        for index in torch.arange(len(self.source)).split(64):
            images, numbers = self.source[index]
            features.append(tokenizer.features(images))
            labels.append(numbers)
        self.features = torch.cat(features)
        return torch.cat(tokenizer.quantize(self.features)[0], dim=1), torch.cat(labels)

    def lesson(
        self, index: Int[Tensor, " B"], inputs: Inputs, own_tokens: float
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Return the bits to predict and to read. Whatever disturbs a bit flips it, so the finer scales correct it: the
        bits of another image, those that the generator itself would draw, or chance."""
        bits = self.tokens[index]
        flips = random_flips(len(bits), self.model.units, self.config.bit_flips, self.rng)
        flips |= self.disturbed(inputs, bits, own_tokens) != bits
        return self_corrected(self.model.tokenizer, self.features[index], flips)

    def mean(self, losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
        """Return the mean of the losses of all bits, where those of a scale are divided by its side (as in Infinity's
        training code): otherwise the last two scales would have most of the weight."""
        units = torch.tensor(self.model.units)
        weights = units.double().rsqrt().repeat_interleave(units).float()
        return (losses * weights / weights.mean()).mean()
