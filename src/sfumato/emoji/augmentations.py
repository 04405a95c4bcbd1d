"""Augmented images to train the emoji judges on."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.emoji.source import EmojiImages, compose


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Return uniform random numbers between `low` and `high`."""
    return torch.rand(shape, generator=rng) * (high - low) + low


def move(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Shift, rotate and scale each image by random amounts."""
    batch = len(images)
    angle, zoom = uniform(rng, -0.2, 0.2, batch), uniform(rng, 0.85, 1.25, batch)
    turn = torch.stack([angle.cos() * zoom, -angle.sin() * zoom, angle.sin() * zoom, angle.cos() * zoom], dim=1)
    affine = torch.cat([turn.unflatten(1, (2, 2)), uniform(rng, -0.15, 0.15, batch, 2, 1)], dim=2)
    places = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def relight(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Change the contrast, brightness and color balance of each image by random amounts."""
    batch = len(images)
    contrast, brightness = uniform(rng, 0.5, 1.2, batch, 1, 1, 1), uniform(rng, -0.1, 0.1, batch, 1, 1, 1)
    return (images * contrast + brightness) * uniform(rng, 0.9, 1.1, batch, 3, 1, 1)


def degrade(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Blur each image and add noise, by random amounts; the result is clamped to [0, 1]."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, uniform(rng, 0, 1, len(images), 1, 1, 1))
    noise = torch.randn(images.shape, generator=rng)
    return (images + noise * uniform(rng, 0, math.sqrt(0.06), len(images), 1, 1, 1).square()).clamp(0, 1)


def augment(images: Float[Tensor, "B 3 H W"], rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Apply `move`, `relight` and `degrade`; the result is in [0, 1]."""
    return degrade(relight(move(images, rng), rng), rng)


def random_scenes(source: ImageSource, count: int, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " B"]]:
    """Draw images and labels; emoji get random background colors and light instead of the source's scenes."""
    if not isinstance(source, EmojiImages):
        index = torch.multinomial(source.weights, count, replacement=True, generator=rng)
        return source[index]
    labels = torch.randint(len(source.sprites), (count,), generator=rng)
    grey = torch.rand(count, 1, generator=rng)
    backgrounds = torch.lerp(
        grey.expand(-1, 3), torch.rand(count, 3, generator=rng), torch.rand(count, 1, generator=rng)
    )
    lights = 0.4 + 0.6 * torch.rand(count, generator=rng)
    return compose(source.sprites[labels], backgrounds, lights), labels


def augmented_scenes(source: ImageSource, count: int, rng: torch.Generator) -> tuple[Tensor, Int[Tensor, " B"]]:
    """Draw augmented images in [0, 1] and their labels."""
    images, labels = random_scenes(source, count, rng)
    return augment(images, rng), labels
