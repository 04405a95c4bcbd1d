"""Requests for the images of an evaluation: classes or captions."""

from collections.abc import Sequence

import torch

from sfumato.data.classes import spread
from sfumato.data.prompts import Prompt, prompt_words
from sfumato.errors import UserError
from sfumato.evaluation.judging import load_judge
from sfumato.naming import class_words
from sfumato.policy import Generator
from sfumato.request import Words


def reads_captions(generator: Generator) -> bool:
    """Return whether a model reads captions; otherwise it draws its own classes."""
    return not generator.card.class_names


def names_to_ask(generator: Generator) -> tuple[str, ...]:
    """Return the names of a model's classes, or those of its judge's classes if the model reads captions.

    Raises:
        UserError: the model reads captions and has no judge.
    """
    judge = load_judge(generator.card.judge) if reads_captions(generator) else None
    names = generator.card.class_names if judge is None else judge.class_names
    if not names:
        raise UserError("target: the model reads captions and its card names no judge; use a suite that takes prompts")
    return names


def ask_classes(generator: Generator, labels: Sequence[int], names: Sequence[str]) -> Words:
    """Return words for classes by label; for a model that reads captions, the captions are the class names."""
    if reads_captions(generator):
        return ask_prompts(generator, [Prompt(names[label]) for label in labels])
    return class_words(labels, generator.card.class_names)


def ask_prompts(generator: Generator, prompts: Sequence[Prompt]) -> Words:
    """Return words for captions, in the given order.

    Raises:
        UserError: the model draws classes.
    """
    if not reads_captions(generator):
        raise UserError("prompts: the model draws classes, not captions; leave the option out, or give another target")
    return prompt_words(prompts)


def ask_evenly(generator: Generator, prompts: Sequence[Prompt], count: int) -> Words:
    """Return words for `count` images: the captions in turn, or an evenly spaced subset if there are more than `count`.

    Raises:
        UserError: the model draws classes.
    """
    chosen = [prompts[i] for i in spread(len(prompts), min(count, len(prompts)))]
    return repeated(ask_prompts(generator, chosen), count)


def repeated(words: Words, count: int) -> Words:
    """Repeat the words in turn until there are `count`; if there are more, take an evenly spaced subset."""
    total = len(words)
    if count < total:
        return words[torch.tensor(spread(total, count))]
    return words[torch.arange(count) % total]
