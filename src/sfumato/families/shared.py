"""What the generators of all families share beside their transformers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError


def name_classes(class_names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of `count` classes; their numbers if none are given.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    names = tuple(class_names or map(str, range(count)))
    if len(names) != count:
        raise UserError(f"class_names: {len(names)} names for {count} classes; give one each")
    return names


def check_size(images: Float[Tensor, "B 3 H W"], size: int) -> None:
    """Refuse images that are not of the tokenizer's side.

    Raises:
        UserError: they are not.
    """
    if images.shape[2:] != (size, size):
        raise UserError(f"images: {tuple(images.shape)} are not of the generator's {size}×{size} pixels; resize them")


def keep_top_k(logits: Float[Tensor, "*N V"], top_k: int) -> Float[Tensor, "*N V"]:
    """Only the k largest logits, with ties of the k-th; the others become -inf. 0 keeps all."""
    if top_k <= 0:
        return logits
    smallest_kept = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)
