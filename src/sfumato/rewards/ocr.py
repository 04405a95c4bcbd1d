"""Agreement of the text in an image with the requested text, read by RapidOCR, whose models come with its package."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import to_bytes
from sfumato.request import Words
from sfumato.rewards import needs

QUOTED = re.compile(r"(?<!\w)[\"“”'‘’]([^\"“”]+?)[\"“”'‘’](?!\w)")
"""Text in quotation marks."""


@dataclass(frozen=True, kw_only=True)
class Ocr:
    """1 - edits / length of the requested text, at least 0. 1 means an exact match; case and spaces are ignored.

    The requested text is the option `text`, or "text" in the image's metadata, or the quoted part of its caption. An
    image without a requested text has no score.
    """

    text: str | None = None
    """requested text for all images"""

    def __post_init__(self):
        load_reader()

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        pictures = to_bytes(images).flip(1).permute(0, 2, 3, 1).cpu().numpy()  # blue, green, red
        wanted = [self.text or wanted_text(words, n) for n in range(len(images))]
        scores = [
            similarity(text, read(picture)) if text else torch.nan
            for text, picture in zip(wanted, pictures, strict=True)
        ]
        return torch.tensor(scores, device=images.device)


def wanted_text(words: Words, index: int) -> str:
    """Return the text that an image should show; empty if no text is requested."""
    text = words.metadata[index].get("text")
    return str(text) if text else " ".join(QUOTED.findall(words.captions[index]))


@functools.cache
def load_reader() -> Any:
    """Load RapidOCR with the models of its package.

    Raises:
        UserError: it is not installed.
    """
    return needs.package("rapidocr_onnxruntime", "ocr").RapidOCR(intra_op_num_threads=torch.get_num_threads())


def read(picture: np.ndarray) -> str:
    """Return all text in an 8-bit image (H, W, 3; blue, green, red), line by line."""
    lines, _ = load_reader()(picture)
    return " ".join(text for _, text, _ in lines or [])


def similarity(wanted: str, seen: str) -> float:
    """Return 1 - edits / length of the wanted text, 0 to 1; case and spaces are ignored."""
    wanted, seen = ("".join(text.lower().split()) for text in (wanted, seen))
    return max(0.0, 1 - edit_distance(wanted, seen) / max(len(wanted), 1))


def edit_distance(first: str, second: str) -> int:
    """Return the smallest number of insertions, deletions and replacements of characters that turn one text into the
    other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
