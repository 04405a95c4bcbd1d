"""Helpers that the generators of several families share."""

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.policy import Card
from sfumato.request import ClassInputs, Inputs, Request, Words, inputs_of
from sfumato.settings import Settings

Module = TypeVar("Module", bound=nn.Module)
Kind = TypeVar("Kind")


def with_parts(generator: Module, **parts: nn.Module) -> Module:
    """Return a copy of a generator with other modules under these names; everything else is shared."""
    twin = copy.copy(generator)
    twin._modules = {**generator._modules, **parts}
    return twin


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


def check_heads(shape: Any, multiple: int) -> None:
    """Check that the attention heads in a shape divide its width into multiples of a number, and that its key and value
    heads, if it has them, divide the heads.

    Raises:
        UserError: they do not.
    """
    width, heads, shared = shape.width, shape.num_heads, getattr(shape, "num_kv_heads", None)
    if width % heads or width // heads % multiple:
        raise UserError(f"num_heads: {heads} heads must divide the width {width} into multiples of {multiple}")
    if shared and heads % shared:
        raise UserError(f"num_kv_heads: {shared} does not divide num_heads {heads}")


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


def caption_inputs(asked: Inputs | Request, kind: type[Kind]) -> Kind:
    """Return the inputs of a request, if they are those of a model that reads captions in this form.

    Raises:
        UserError: they are those of another kind of model.
    """
    inputs = inputs_of(asked)
    if not isinstance(inputs, kind):
        raise UserError(f"inputs: this model reads captions, not {type(inputs).__name__}")
    return inputs


def check_step(number: int, count: int, drawn: Tensor | None, unit: str, given: str) -> None:
    """Check that a decoding step is one of `count`, and that only the first one gets nothing that was drawn before.

    Args:
        number: number of the step, counted from 0.
        count: number of steps of an image.
        drawn: what was drawn in the step before.
        unit: what a step draws, for the message, e.g. "scale".
        given: what `drawn` holds, for the message, e.g. "tokens".

    Raises:
        ValueError: all steps are done, or `drawn` is missing, or given at the first step.
    """
    if number == count:
        raise ValueError(f"step: all {number} {unit}s are drawn; call start for a new image")
    if (drawn is None) != (number == 0):
        raise ValueError(f"drawn: give None at the first {unit} and the drawn {given} after it ({unit} {number})")


def check_size(images: Float[Tensor, "B 3 H W"], height: int, width: int | None = None) -> None:
    """Check that images have the size of the tokenizer; the width is the height by default.

    Raises:
        UserError: they have another size.
    """
    width = width or height
    if images.shape[2:] != (height, width):
        raise UserError(
            f"images: shape {tuple(images.shape)} differs from the generator's {height}×{width} pixels; resize them"
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


def keep_nucleus(logits: Float[Tensor, "*N V"], top_p: float) -> Float[Tensor, "*N V"]:
    """Set the logits outside the nucleus of VAR's code to -inf; 0 keeps all.

    Those of the least likely tokens whose probabilities add up to at most 1 - top_p are removed, but never that of the
    most likely token. (LlamaGen's filter differs at the boundary.)
    """
    if top_p <= 0:
        return logits
    ascending, order = logits.sort(dim=-1)
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    removed[..., -1] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)


def ramped_guidance(settings: Settings, scales: int) -> tuple[float, ...] | None:
    """Return the strength t of guidance at each scale, as VAR counts it; None without guidance.

    A single number g is ramped linearly, t = g·i/(S - 1) at scale i of S; a list sets t directly.
    """
    guidance, last = settings.guidance, max(1, scales - 1)
    if guidance is None:
        return None
    if isinstance(guidance, tuple):
        return settings.at("guidance", scales)
    return tuple(guidance * scale / last for scale in range(scales))
