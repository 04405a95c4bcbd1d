"""Text in the image against the text asked for, read by RapidOCR, whose models come with its package."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import to_bytes
from sfumato.rewards import needs
from sfumato.rollout import Conditions

QUOTED = re.compile(r"(?<!\w)[\"“”'‘’]([^\"“”]+?)[\"“”'‘’](?!\w)")
"""text in quotation marks"""


@dataclass(frozen=True, kw_only=True)
class Ocr:
    """1 - edits / length of the text asked for, at least 0: 1 is the text exactly, without regard to case and spaces.

    The text is the option, or the condition's metadata "text", or what its caption has in quotation marks. An image
    of which no text is asked has no score.
    """

    text: str | None = None
    """text for all images"""

    def __post_init__(self):
        load_reader()

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        pictures = to_bytes(images).flip(1).permute(0, 2, 3, 1).cpu().numpy()  # blue, green, red
        wanted = [self.text or wanted_text(conditions, n) for n in range(len(images))]
        scores = [
            similarity(text, read(picture)) if text else torch.nan
            for text, picture in zip(wanted, pictures, strict=True)
        ]
        return torch.tensor(scores, device=images.device)


def wanted_text(conditions: Conditions, index: int) -> str:
    """The text that an image should show; empty if none is asked for."""
    text = conditions.metadata[index].get("text")
    return str(text) if text else " ".join(QUOTED.findall(conditions.captions[index]))


@functools.cache
def load_reader() -> Any:
    """RapidOCR with the models of its package.

    Raises:
        UserError: it is not installed.
    """
    return needs.package("rapidocr_onnxruntime", "ocr").RapidOCR(intra_op_num_threads=torch.get_num_threads())


def read(picture: np.ndarray) -> str:
    """All text in an 8-bit image (H, W, 3; blue, green, red), line after line."""
    lines, _ = load_reader()(picture)
    return " ".join(text for _, text, _ in lines or [])


def similarity(wanted: str, found: str) -> float:
    """1 - edits / length of what is wanted, from 0 to 1, without regard to case and spaces."""
    wanted, found = ("".join(text.lower().split()) for text in (wanted, found))
    return max(0.0, 1 - edit_distance(wanted, found) / max(len(wanted), 1))


def edit_distance(first: str, second: str) -> int:
    """Least number of characters to insert, delete or replace to make one the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
