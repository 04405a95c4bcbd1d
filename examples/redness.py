"""A reward of your own: how much more red than green and blue an image is.

sfumato train emoji-dark --reward examples/redness.py:redness 1.0 brightness 0.5 --run-dir runs/red
"""

from torch import Tensor

from sfumato.request import Words


def redness(images: Tensor, words: Words) -> Tensor:
    """Score images (B, 3, H, W) in [0, 1]; returns (B,). `words` has the names, labels, captions and metadata."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
