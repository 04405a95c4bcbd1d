"""What models are asked to draw in an evaluation: classes or captions."""

from collections.abc import Sequence

import torch

from sfumato.data.classes import caption_conditions, class_conditions, spread
from sfumato.data.prompts import Prompt
from sfumato.errors import UserError
from sfumato.evaluation.targets import Drawing
from sfumato.policy import Generator
from sfumato.rollout import Conditions
from sfumato.text.encoders import load_text_encoder


def ask_classes(generator: Generator, drawing: Drawing, labels: Sequence[int], names: Sequence[str]) -> Conditions:
    """Conditions for classes by label; a model that reads captions is asked for the names."""
    if generator.text_encoder:
        return ask_prompts(generator, drawing, [Prompt(names[label]) for label in labels])
    return class_conditions(labels, generator.class_names)


def ask_prompts(generator: Generator, drawing: Drawing, prompts: Sequence[Prompt]) -> Conditions:
    """Conditions for captions, in their order.

    Raises:
        UserError: the model draws classes.
    """
    if not generator.text_encoder:
        raise UserError("prompts: the model draws classes, not captions; leave the option out, or give another target")
    device = next(generator.transformer.parameters()).device
    reader = load_text_encoder(drawing.text_encoder or generator.text_encoder, device)
    captions, metadata = [p.caption for p in prompts], [p.metadata for p in prompts]
    return caption_conditions(captions, reader.encode, generator.longest_caption, metadata)


def ask_evenly(generator: Generator, drawing: Drawing, prompts: Sequence[Prompt], count: int) -> Conditions:
    """`count` conditions: the captions in turn, or as many of them spread evenly; no others are read.

    Raises:
        UserError: the model draws classes.
    """
    chosen = [prompts[i] for i in spread(len(prompts), min(count, len(prompts)))]
    return repeated(ask_prompts(generator, drawing, chosen), count)


def repeated(conditions: Conditions, count: int) -> Conditions:
    """The conditions in turn until there are `count`, spread evenly over them if they are more."""
    total = len(conditions)
    if count < total:
        return conditions[torch.tensor(spread(total, count))]
    return conditions[torch.arange(count) % total]
