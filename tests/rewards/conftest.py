"""Photographs, and small models with random weights, saved in the format of the released ones."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_transformers import save_clip


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Three photographs of different shapes."""
    data = pytest.importorskip("skimage.data")
    return [Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(), data.chelsea())]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of 224-pixel images with random weights, its tokenizer and its processor."""
    pytest.importorskip("transformers")
    return save_clip(tmp_path_factory.mktemp("clip"))
