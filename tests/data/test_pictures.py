"""Grids of images, checked pixel by pixel."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfumato.data.pictures import LABEL, grid, save_picture, side_by_side, tiles, to_pictures


def test_grid():
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    images = colors[:, :, None, None].expand(-1, -1, 4, 5)
    sheet = np.array(grid(images, columns=2, zoom=3, gap=2))
    assert sheet.shape == (2 * (12 + 2) + 2, 2 * (15 + 2) + 2, 3)
    for row, column, color in ((0, 0, (255, 0, 0)), (0, 1, (0, 255, 0)), (1, 0, (0, 0, 255)), (1, 1, (255,) * 3)):
        tile = sheet[2 + row * 14 : 14 + row * 14, 2 + column * 17 : 17 + column * 17]
        assert (tile == color).all()
    assert (sheet[:2] == 255).all()
    assert (sheet[:, 17:19] == 255).all()


def test_labels_stand_below_the_first_image_that_has_them():
    images = torch.zeros(5, 3, 8, 40)
    plain = np.array(grid(images, columns=3))
    labels = ["bee", "bee", "a name that is far too long", "dog", "dog"]
    sheet = np.array(grid(images, columns=3, labels=labels))
    assert sheet.shape == (plain.shape[0] + 2 * LABEL, plain.shape[1], 3)
    assert (sheet[2:10] == plain[2:10]).all()  # the first row
    assert (sheet[12 + LABEL : 20 + LABEL] == plain[12:20]).all()  # the second row
    written = [[bool((band[:, x : x + 40] < 128).any()) for x in (2, 44, 86)] for band in (sheet[10:28], sheet[38:56])]
    assert written == [[True, False, True], [True, False, False]]
    assert (sheet[:, -2:] == 255).all()  # the long name is cut


def test_a_grid_is_cut_into_its_images():
    images = torch.linspace(0, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    cut = tiles(grid(images, columns=2, zoom=3), columns=2)
    assert len(cut) == 6  # the last row has one image and one white tile
    for tile, image in zip(cut, to_pictures(images), strict=False):
        assert np.array_equal(np.array(tile), np.array(image).repeat(3, 0).repeat(3, 1))
    assert (np.array(cut[5]) == 255).all()


def test_rounding_to_bytes():
    values = torch.tensor([-0.5, 0.0, 0.1, 0.5, 0.999, 1.0, 7.0])
    picture = to_pictures(values.expand(1, 3, 1, 7))[0]
    # 0.1 is 25.5, which rounds to even, 26; 0.5 is 127.5, which rounds to 128.
    assert np.array(picture)[0, :, 0].tolist() == [0, 0, 26, 128, 255, 255, 255]


def test_side_by_side(tmp_path: Path):
    left, right = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 50), "blue")
    sheet = side_by_side([("before", left), ("after", right)])
    save_picture(sheet, tmp_path / "new/folder/sheet.png")
    with Image.open(tmp_path / "new/folder/sheet.png") as picture:
        pixels = np.array(picture)
    assert pixels.shape == (50 + 28 + 16, 40 + 20 + 3 * 16, 3)
    assert (pixels[28:58, 16:56] == (255, 0, 0)).all()
    assert (pixels[28:78, 72:92] == (0, 0, 255)).all()
    assert (pixels[:28] < 128).any()  # the titles
