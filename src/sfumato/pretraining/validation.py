"""Images held out of pre-training: which they are, and what their loss says."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data.classes import spread
from sfumato.data.images import ImageSource
from sfumato.emoji.source import EmojiImages

SHARE, MOST = 0.05, 1000
"""Share of each class that is held out, and about how many images at most."""
SMALLEST_CLASS = 10
"""Number of different images that a class needs for one of them to be held out."""
MEASURED = 256
"""Largest number of held-out images that are measured at a time."""
TOLERANCE = 0.02
"""Relative rise of the validation loss above its minimum that counts as one."""
RECENT = 50
"""Number of steps over which training losses, which vary from batch to batch, are averaged."""


def hold_out(source: ImageSource) -> list[int]:
    """Give a share of each class the weight 0, so that no trainer draws it; return the numbers of these items.

    Images are chosen by the hash of their pixels: the same ones whatever their names and their order. Copies of an
    image are held out together. Of the bundled emoji none is, because all items of a class are the same drawing.
    """
    if isinstance(source, EmojiImages):
        return []
    by_class: dict[int, dict[bytes, list[int]]] = {}
    for item in range(len(source)):
        image, label = source[torch.tensor([item])]
        digest = hashlib.sha256((image * 255).round().byte().numpy().tobytes()).digest()
        by_class.setdefault(int(label), {}).setdefault(digest, []).append(item)
    share, chosen = min(SHARE, MOST / len(source)), []
    for items in by_class.values():
        if len(items) >= SMALLEST_CLASS:
            chosen += [item for digest in sorted(items)[: max(1, round(share * len(items)))] for item in items[digest]]
    source.weights = source.weights.clone()
    source.weights[chosen] = 0.0
    return sorted(chosen)


def held_out(weights: Float[Tensor, " N"]) -> Int[Tensor, " M"]:
    """Return the numbers of the items that are never drawn, or `MEASURED` of them at even intervals."""
    items = (weights == 0).nonzero()[:, 0]
    return items if len(items) <= MEASURED else items[spread(len(items), MEASURED)]


def validation_stats(
    items: Int[Tensor, " M"], batch_size: int, measure: Callable[[Int[Tensor, " B"]], Mapping[str, float]]
) -> dict[str, float]:
    """Return the means over the items of what `measure` returns for a part of them, with `val_` before each name.

    Returns an empty dict if there are no items.
    """
    means: dict[str, float] = {}
    for part in items.split(batch_size) if len(items) else ():
        for name, value in measure(part).items():
            means[f"val_{name}"] = means.get(f"val_{name}", 0.0) + value * len(part) / len(items)
    return means


def memorizing(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say so if the validation loss has risen since its minimum while the training loss fell; otherwise return None.

    Args:
        rows: lines of a stage's `metrics.jsonl`, in which values that are not finite are None.
    """
    measured = [row for row in rows if row.get("val_loss") is not None]
    if not measured:
        return None
    best, last = min(measured, key=lambda row: row["val_loss"]), measured[-1]
    before, now = (_recent_loss(rows, row["step"]) for row in (best, last))
    if last["val_loss"] <= (1 + TOLERANCE) * best["val_loss"] or now >= before:
        return None
    return (
        f"the validation loss rose from {best['val_loss']:.3g} (step {best['step']:.0f}) to {last['val_loss']:.3g} "
        f"(step {last['step']:.0f}) while the training loss fell from {before:.3g} to {now:.3g}: "
        "the model memorizes its images"
    )


def _recent_loss(rows: Sequence[Mapping[str, Any]], step: float) -> float:
    """Return the mean training loss of the steps just before this one and itself."""
    losses = [row["loss"] for row in rows if step - RECENT < row["step"] <= step and row["loss"] is not None]
    return sum(losses) / max(1, len(losses))
