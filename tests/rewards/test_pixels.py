"""Pixel rewards, checked by hand and against independent computations on 8-bit values."""

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_request
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards import REWARDS, pixels


def plain(*colors: tuple[float, float, float]) -> tuple[Tensor, Words]:
    """Return uniform images of these colors."""
    images = torch.tensor(colors)[:, :, None, None].expand(-1, -1, 4, 6)
    return images, tiny_request([0] * len(colors)).words


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def test_brightness_and_darkness():
    images, words = plain(RED, GREEN, BLUE, WHITE, BLACK)
    expected = torch.tensor([0.299, 0.587, 0.114, 1.0, 0.0])
    torch.testing.assert_close(pixels.brightness(images, words), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.darkness(images, words), 1 - expected, rtol=0, atol=1e-6)
    half = torch.zeros(1, 3, 4, 4)
    half[:, :, :, :2] = torch.tensor(RED)[:, None, None]
    assert pixels.brightness(half, tiny_request([0]).words).item() == pytest.approx(0.1495, abs=1e-6)


def test_thresholds():
    images, words = plain(*((grey, grey, grey) for grey in (0.81, 0.79, 0.5, 0.21, 0.19, 1.0, 0.0)))
    assert pixels.bright(images, words).tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert pixels.dark(images, words).tolist() == [0, 0, 0, 0, 1, 0, 1]


def test_colorfulness_by_hand():
    # Uniform images have no spread: 0.3 times the distance of the mean from gray. Yellow: rg = 0, yb = 1.
    images, words = plain(RED, BLUE, (1.0, 1.0, 0.0), WHITE, (0.5, 0.5, 0.5))
    expected = torch.tensor([0.3 * math.sqrt(1.25), 0.3, 0.3, 0.0, 0.0])
    torch.testing.assert_close(pixels.colorfulness(images, words), expected, rtol=0, atol=1e-6)
    # Half red, half green: rg is 1 and -1, yb is 1/2 everywhere; spread 1, chroma 1/2.
    halves = torch.zeros(1, 3, 4, 4)
    halves[:, 0, :2], halves[:, 1, 2:] = 1, 1
    assert pixels.colorfulness(halves, tiny_request([0]).words).item() == pytest.approx(1.15, abs=1e-6)


def test_colorfulness_of_noise_as_published():
    picture = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3))
    images = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    published = []
    for red, green, blue in (np.moveaxis(p.astype(float), 2, 0) for p in picture):
        rg, yb = red - green, 0.5 * (red + green) - blue
        published.append(math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean()))
    scores = pixels.colorfulness(images, tiny_request([0, 1, 2]).words) * 255
    np.testing.assert_allclose(scores.numpy(), published, rtol=0, atol=1e-3)
    assert min(published) > 100


def test_saturation():
    images, words = plain(RED, WHITE, BLACK, (0.5, 0.25, 0.25), (0.2, 0.4, 0.3))
    expected = [1.0, 0.0, 0.0, 0.5, 0.5]
    torch.testing.assert_close(pixels.saturation(images, words), torch.tensor(expected), rtol=0, atol=1e-6)
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3))
    published = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.reshape(-1, 3) / 255])
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    assert pixels.saturation(images, tiny_request([0]).words).item() == pytest.approx(published, abs=1e-6)


def test_jpeg_size(tmp_path: Path):
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    images = torch.stack([noise.permute(2, 0, 1).float() / 255, torch.full((3, 64, 48), 0.5)])
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.jpg", quality=95)
    scores = pixels.jpeg_size(images, tiny_request([0, 1]).words)
    assert scores[0].item() == pytest.approx((tmp_path / "noise.jpg").stat().st_size / 1000, abs=1e-6)
    assert scores[1] < 0.2 * scores[0]


def test_names():
    assert {"brightness", "darkness", "bright", "dark", "colorfulness", "saturation", "jpeg-size"} <= set(REWARDS)
