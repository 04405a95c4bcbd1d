"""Words and noun phrases of a caption, as spaCy's small English model tells them."""

from dataclasses import dataclass
from typing import Any

from sfumato.errors import UserError
from sfumato.rewards import needs

MODEL = "en_core_web_sm"
"""The model of T2I-CompBench's code."""


@dataclass(frozen=True)
class Parsed:
    """A caption in parts."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    """universal part of speech of each word: NOUN, ADJ, ..."""
    phrases: tuple[str, ...]
    """noun phrases without overlap, such as "a red car", in order"""


@dataclass(frozen=True)
class Parser:
    """Takes captions apart."""

    nlp: Any
    """a spaCy pipeline with a tagger and a parser"""

    def __call__(self, caption: str) -> Parsed:
        document = self.nlp(caption)
        return Parsed(
            tuple(word.text for word in document),
            tuple(word.pos_ for word in document),
            tuple(phrase.text for phrase in document.noun_chunks),
        )


def load_parser() -> Parser:
    """Load spaCy's model.

    Raises:
        UserError: spaCy or the model is not installed; the message contains the command.
    """
    spacy = needs.package("spacy", "compbench")
    try:
        return Parser(spacy.load(MODEL))
    except OSError:
        raise UserError(f"spacy: the model {MODEL} is not installed; python -m spacy download {MODEL}") from None
