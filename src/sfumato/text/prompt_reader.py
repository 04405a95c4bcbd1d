"""Prompt reading for generators that are language models: captions in a template become token ids."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from sfumato.errors import UserError
from sfumato.request import TokenInputs
from sfumato.text.encoders import CutCaptions


class PromptReader:
    """Converts captions to the token ids of prompts, with the text tokenizer of a language model."""

    def __init__(
        self, tokenizer: str, template: str, longest: int, *, padding: str, vocab_size: int, null: str | None = None
    ):
        """Create a reader; nothing is loaded yet.

        Args:
            tokenizer: hub id, folder with a `tokenizer.json`, or such a file.
            template: prompt with special tokens by name, and `{caption}`. The last special token begins the image.
            longest: maximum number of tokens of a prompt; longer captions are cut off, the rest of the prompt is kept.
            padding: name of the token of padding.
            vocab_size: number of token ids that the network knows.
            null: prompt that stands for no condition, if there is one; it is read with all others.
        """
        self.name, self.template, self.longest, self.padding = tokenizer, template, longest, padding
        self.vocab_size, self.always, self.cut = vocab_size, () if null is None else (null,), CutCaptions()
        self._loaded: Tokenizer | None = None
        self._zeros = False

    def use(self, encoder: str) -> None:
        """Switch to the text tokenizer in another folder, or of another hub id."""
        self.name, self._loaded = encoder, None

    def use_zeros(self) -> None:
        """Read each caption as one of the maximum length with ids 0, without any tokenizer."""
        self._zeros = True

    def prepare(
        self,
        captions: Sequence[str],
        folder: Path,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Load the tokenizer; ids are not worth a cache on disk.

        Raises:
            UserError: the tokenizer cannot be loaded, or is that of another model.
        """
        self._tokenizer()

    def read(
        self, captions: Sequence[str], device: torch.device | str = "cpu", template: str | None = None
    ) -> TokenInputs:
        """Return the network inputs for these captions, on the CPU; equal captions have one row in the table.

        A `template` is read instead of the reader's own.

        Raises:
            UserError: the tokenizer cannot be loaded, or is that of another model.
        """
        distinct = list(dict.fromkeys(captions))
        numbers = {caption: number for number, caption in enumerate(distinct)}
        if self._zeros:
            prompts, padding = [[0] * self.longest for _ in (*distinct, *self.always)], 0
        else:
            tokenizer = self._tokenizer()
            padding = tokenizer.token_to_id(self.padding) or 0  # `_tokenizer` has checked that there is one
            prompts = [self._encode(tokenizer, caption, template or self.template) for caption in distinct]
            prompts += [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in self.always]
        return replace(
            TokenInputs.padded(prompts, padding),
            rows=torch.tensor([numbers[caption] for caption in captions]),
            null_row=len(distinct) if self.always else None,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; without a tokenizer (`use_zeros`), a single 0."""
        return [0] if self._zeros else self._tokenizer().encode(text, add_special_tokens=False).ids

    def check_id(self, token: str, number: int) -> None:
        """Check that a special token has the id that the model knows it by; without a tokenizer there is nothing to
        check.

        Raises:
            UserError: it has another one, or there is no such token.
        """
        found = number if self._zeros else self._tokenizer().token_to_id(token)
        if found != number:
            raise UserError(
                f"text_encoder: the tokenizer {self.name} has {token} as {found}, not {number}; give the folder of the "
                "model's own"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text with these ids, without special tokens and outer white space."""
        return self._tokenizer().decode(ids).strip()

    def _encode(self, tokenizer: Tokenizer, caption: str, template: str) -> list[int]:
        """Return the ids of a caption's prompt; the end of a caption that is too long is left out."""
        before, after = template.split("{caption}")
        ids = tokenizer.encode(f"{before}{caption}{after}".strip(), add_special_tokens=False).ids
        self.cut.say([caption], [len(ids)], self.longest)
        if len(ids) <= self.longest:
            return ids
        end = tokenizer.encode(after, add_special_tokens=False).ids
        return [*ids[: self.longest - len(end)], *end]

    def _tokenizer(self) -> Tokenizer:
        if self._loaded is None:
            tokenizer = load_tokenizer(self.name)
            names = [self.padding, *re.findall(r"<[^<>{}]+>$", self.template)]
            missing = [name for name in names if tokenizer.token_to_id(name) is None]
            size = tokenizer.get_vocab_size()
            if missing or size > self.vocab_size:
                reason = f"lacks the token {missing[0]}" if missing else f"has {size} tokens, not {self.vocab_size}"
                raise UserError(f"text_encoder: the tokenizer {self.name} {reason}; give the folder of the model's own")
            self._loaded = tokenizer
        return self._loaded


def load_tokenizer(name: str) -> Tokenizer:
    """Load a text tokenizer by hub id, from a folder with a `tokenizer.json`, or from such a file.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    elif not path.is_file():
        path = _fetched(name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific; the cause is kept
        raise UserError(f"text_encoder: {path} cannot be read as a tokenizer ({error}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _fetched(name: str) -> Path:
    """Download the tokenizer of a hub repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ImportError) as error:
        raise UserError(
            f"text_encoder: {name} is not a folder with a tokenizer.json, and could not be downloaded; "
            "download the model's tokenizer.json and give its folder"
        ) from error
