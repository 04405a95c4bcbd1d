"""Helpers that the generators of several families share."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.policy import Card
from sfumato.request import ClassInputs, Words


def check_sizes(shape: Any, may_be_zero: Sequence[str] = ()) -> None:
    """Check that all whole numbers in a shape, a dataclass, are at least 1; those in the named fields, at least 0.

    Raises:
        UserError: one is smaller.
    """
    for field in fields(shape):
        value, least = getattr(shape, field.name), 0 if field.name in may_be_zero else 1
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < least:
                raise UserError(f"{field.name}: {number} is too small; give at least {least}")


def check_tokenizer_sizes(shape: Any) -> None:
    """Check that all whole numbers in the shape of a convolutional tokenizer are at least 1, and its `norm_groups`
    divides the channels of every level.

    Raises:
        UserError: a number is too small, or does not divide.
    """
    check_sizes(shape)
    for channels in (shape.base_channels * multiplier for multiplier in shape.channel_multipliers):
        if channels % shape.norm_groups:
            raise UserError(f"norm_groups: {shape.norm_groups} does not divide {channels} channels; give a divisor")


def number_classes(card: Card, count: int) -> Card:
    """Return the card of a model with `count` classes; without class names, the numbers become the names.

    Raises:
        UserError: the number of names differs from the number of classes.
    """
    names = card.class_names or tuple(map(str, range(count)))
    if len(names) != count:
        raise UserError(f"class_names: {len(names)} names for {count} classes; give one name per class")
    return replace(card, class_names=names)


def class_inputs(words: Words, count: int) -> ClassInputs:
    """Return the class numbers of words as inputs of a model with `count` classes.

    Raises:
        UserError: a label is not a class of the model.
    """
    wrong = (words.labels < 0) | (words.labels >= count)
    if wrong.any():
        position = int(wrong.nonzero()[0, 0])
        label, name = int(words.labels[position]), words.names[position]
        raise UserError(
            f"classes: {name!r} has the label {label}, not one of 0 to {count - 1}; give the number of a class"
        )
    return ClassInputs(labels=words.labels)


def check_size(images: Float[Tensor, "B 3 H W"], size: int) -> None:
    """Check that images have the size of the tokenizer.

    Raises:
        UserError: they have another size.
    """
    if images.shape[2:] != (size, size):
        raise UserError(
            f"images: shape {tuple(images.shape)} differs from the generator's {size}×{size} pixels; resize them"
        )


def check_tokens(tokens: Int[Tensor, "B L"], units: tuple[int, ...]) -> None:
    """Check that token sequences have the length that the model draws.

    Raises:
        UserError: they are longer or shorter.
    """
    if tokens.shape[1] != sum(units):
        raise UserError(
            f"tokens: the model draws {sum(units)} tokens per image, but {tokens.shape[1]} are given; "
            "give complete images of the size that the model was loaded for"
        )


def keep_top_k(logits: Float[Tensor, "*N V"], top_k: int) -> Float[Tensor, "*N V"]:
    """Keep the k largest logits, including ties with the k-th; set the others to -inf. 0 keeps all."""
    if top_k <= 0:
        return logits
    smallest_kept = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)
