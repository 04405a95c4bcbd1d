"""Pre-training of a tokenizer: reconstruction, edges and vector quantization."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sfumato.data.classes import spread
from sfumato.data.images import ImageSource
from sfumato.data.pictures import grid
from sfumato.engine.optimizer import descend
from sfumato.engine.schedule import cosine_schedule
from sfumato.pretraining.validation import held_out, validation_stats


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """Settings for training a tokenizer, whatever its quantizer."""

    steps: int = 4000
    """number of optimizer steps"""
    batch_size: int = 16
    """number of images per step"""
    learning_rate: float = 1e-3
    """peak learning rate of AdamW, on a cosine schedule"""
    warmup_steps: int = 100
    """number of steps of linear warm-up"""
    max_grad_norm: float = 1.0
    """largest gradient norm; larger gradients are scaled down to it"""
    l1_weight: float = 0.1
    """weight of the absolute error; the squared error has weight 1"""
    edge_weight: float = 0.1
    """weight of the absolute error of horizontal and vertical differences between pixels"""
    commitment_weight: float = 0.25
    """weight of the loss that pulls the encoder's output to its codes (beta of VQ-VAE)"""
    decoder_only: bool = False
    """train only the decoder, of the model to start from: all images keep their tokens, so generators stay valid"""


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining(AutoencoderTraining):
    """Settings for training a tokenizer with a codebook."""

    codebook_decay: float = 0.99
    """decay of the moving average of the vectors assigned to each code"""


# Tokenizers are typed as Any. They need `features`, `decode_features` and `reconstruct`, and those with a codebook a
# quantizer with `codebook` and `quantize`, in the form that all families share.


class CodebookAverages:
    """The codebook as a moving average of the vectors assigned to each code; dead codes restart at live vectors."""

    window = 100
    """number of updates in which a used code gets at least one vector"""

    def __init__(self, quantizer: Any, decay: float, dead_below: float = 0.1):
        self.quantizer, self.decay, self.dead_below = quantizer, decay, dead_below
        quantizer.codebook.requires_grad_(False)
        self.counts = torch.zeros(quantizer.codebook.num_embeddings)
        self.sums = torch.zeros_like(quantizer.codebook.weight)
        self.idle = torch.full((len(self.counts),), self.window)  # updates since a code last got a vector

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "N C"], tokens: Int[Tensor, " N"], rng: torch.Generator) -> None:
        counts = torch.bincount(tokens, minlength=len(self.counts)).to(vectors.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, vectors)
        self.idle = torch.where(counts > 0, 0, self.idle + 1)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < self.dead_below * (1 - self.decay)
        if dead.any():
            replacements = vectors[torch.randint(len(vectors), (int(dead.sum()),), generator=rng)]
            self.counts[dead] = 1 - self.decay
            self.sums[dead] = replacements * (1 - self.decay)
        self.quantizer.codebook.weight.copy_(self.sums / self.counts[:, None])

    def share_used(self) -> float:
        """Return the share of codes that got a vector in the last updates; restarts alone do not count as use."""
        return (self.idle < self.window).float().mean().item()


def edge_loss(images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Return the mean absolute error of the horizontal and vertical differences between neighboring pixels."""
    error = images - targets
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def psnr(images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio in dB of images in [0, 1]."""
    return -10 * (images - targets).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def reconstruction_loss(
    output: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"], config: AutoencoderTraining
) -> tuple[Float[Tensor, ""], float]:
    """Return the squared, absolute and edge errors of a decoder's output in about [-1, 1], weighted, and its PSNR (dB).
    The images are in [0, 1]."""
    targets = images * 2 - 1
    squared, absolute = F.mse_loss(output, targets), F.l1_loss(output, targets)
    loss = squared + config.l1_weight * absolute + config.edge_weight * edge_loss(output, targets)
    return loss, psnr((output.detach().clamp(-1, 1) + 1) / 2, images).mean().item()


def tokenizer_loss(
    model: Any, images: Float[Tensor, "B 3 H W"], config: TokenizerTraining
) -> tuple[Tensor, dict[str, float], Tensor, Tensor]:
    """Return the loss, statistics, and the quantized vectors (N, C) and their codes (N,) for the codebook averages."""
    features = model.features(images)
    tokens, accumulated, vectors = model.quantizer.quantize(features)
    # The codebook follows its averages, so this term of the quantizer trains only phi ...
    phi_loss = torch.stack([F.mse_loss(a, features.detach()) for a in accumulated]).mean()
    # Every scale has a commitment term, as published: the coarse scales keep the features from growing without bound.
    commitment = torch.stack([F.mse_loss(features, a.detach()) for a in accumulated]).mean()
    # ... and the gradient of the decoder passes straight through the quantizer to the encoder.
    output = model.decode_features(features + (accumulated[-1] - features).detach())
    reconstruction, decibels = reconstruction_loss(output, images, config)
    loss = reconstruction + phi_loss + config.commitment_weight * commitment
    stats = {
        "loss": loss.item(),
        "psnr": decibels,
        "quantization_error": phi_loss.item(),
        "feature_rms": features.detach().square().mean().sqrt().item(),
    }
    return loss, stats, torch.cat(vectors).detach(), torch.cat([t.flatten() for t in tokens])


class AutoencoderTrainer:
    """A tokenizer and its optimizer, whatever its quantizer.

    `step` trains on a batch; `state` is everything needed to resume.
    """

    def __init__(self, model: Any, source: ImageSource, config: AutoencoderTraining, rng: torch.Generator):
        self.model, self.source, self.config, self.rng = model, source, config, rng
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        self.schedule: Callable[[int], float] = cosine_schedule(config.steps, config.warmup_steps)

    def loss(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the loss of a batch of images, and its statistics."""
        raise NotImplementedError

    def quantized(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the feature maps after quantization at all scales."""
        quantizer = getattr(self.model, "quantizer", self.model)  # a bitwise tokenizer has no part of its own for it
        return quantizer.quantize(self.model.features(images))[1][-1]

    def step(self, step: int) -> dict[str, float]:
        index = torch.multinomial(self.source.weights, self.config.batch_size, replacement=True, generator=self.rng)
        loss, stats = self.loss(self.source[index][0])
        rate = self.config.learning_rate * self.schedule(step)
        return {**stats, "grad_norm": descend(self.optimizer, loss, rate, self.config.max_grad_norm)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss and the PSNR (dB) of held-out images; empty if there are none."""

        def measure(items: Int[Tensor, " B"]) -> dict[str, float]:
            stats = self.loss(self.source[items][0])[1]
            return {name: stats[name] for name in ("loss", "psnr")}

        return validation_stats(held_out(self.source.weights), self.config.batch_size, measure)

    @torch.no_grad()
    def sample(self) -> Image.Image:
        """Draw a grid of images from the source next to their reconstructions."""
        images, _ = self.source[torch.tensor(spread(len(self.source), 32))]
        pairs = torch.stack([images, self.model.reconstruct(self.quantized(images))], dim=1)
        return grid(pairs.flatten(0, 1), columns=8)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class DecoderTrainer(AutoencoderTrainer):
    """The decoder of a finished tokenizer and its optimizer. Encoder and codes stay as they are, to the bit."""

    def __init__(self, model: Any, source: ImageSource, config: AutoencoderTraining, rng: torch.Generator):
        for name, part in model.named_children():
            part.requires_grad_(name in ("decoder", "post_conv"))
        super().__init__(model, source, config, rng)

    def loss(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        output = self.model.decode_features(self.quantized(images))
        loss, decibels = reconstruction_loss(output, images, self.config)
        return loss, {"loss": loss.item(), "psnr": decibels}


class TokenizerTrainer(AutoencoderTrainer):
    """A tokenizer with a codebook, its optimizer and codebook averages."""

    config: TokenizerTraining

    def __init__(self, model: Any, source: ImageSource, config: TokenizerTraining, rng: torch.Generator):
        self.averages = CodebookAverages(model.quantizer, config.codebook_decay)  # freezes the codebook
        super().__init__(model, source, config, rng)

    def loss(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        loss, stats, vectors, tokens = tokenizer_loss(self.model, images, self.config)
        self.assigned = vectors, tokens
        return loss, stats

    def step(self, step: int) -> dict[str, float]:
        stats = super().step(step)
        self.averages.update(*self.assigned, self.rng)
        return {**stats, "codes_used": self.averages.share_used()}

    def state(self) -> dict:
        averages = self.averages
        return {**super().state(), "counts": averages.counts, "sums": averages.sums, "idle": averages.idle}

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.averages.counts, self.averages.sums = state["counts"], state["sums"]
        self.averages.idle = state.get("idle", self.averages.idle)  # version 0.1 did not store it
