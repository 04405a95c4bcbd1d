"""Resizing compared with PIL, and crops compared with the formulas of torchvision and transformers."""

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.preprocessing import center_crop, crop_square, resize

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
"""Noise, in which bicubic weights overshoot."""
IMAGES = torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("size", [(32, 32), (20, 47), (61, 20), (100, 90), (61, 47)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_is_within_a_level_of_pil(size: tuple[int, int], mode: Literal["bicubic", "bilinear"]):
    method = Image.Resampling.BICUBIC if mode == "bicubic" else Image.Resampling.BILINEAR
    expected = (
        torch.from_numpy(np.array(Image.fromarray(PIXELS).resize((size[1], size[0]), method))).permute(2, 0, 1).int()
    )
    found = (resize(IMAGES, *size, mode=mode)[0] * 255).round().int()
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("excess", range(9))
def test_crops(excess: int):
    """An excess of 3 modulo 4 is where torchvision and transformers differ."""
    side = 8
    rows = torch.arange(float(side + excess))[None, None, :, None].expand(1, 3, -1, side + excess)
    torchvision, transformers = round(excess / 2.0), excess // 2
    for images, axis in ((rows, 2), (rows.mT, 3)):
        found = center_crop(images, side, side)
        assert found.select(axis, 0)[0, 0, 0] == torchvision
        assert center_crop(images, side, side, "down").select(axis, 0)[0, 0, 0] == transformers
        assert found.shape == (1, 3, side, side)


def test_squares_are_cropped_as_asked():
    images = torch.arange(11.0)[None, None, None] / 255 * torch.ones(1, 3, 8, 11)
    assert (crop_square(images, 8)[0, 0, 0, 0] * 255).round() == 2
    assert (crop_square(images, 8, "down")[0, 0, 0, 0] * 255).round() == 1
