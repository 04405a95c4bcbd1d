"""Caption reading for generators: a text encoder that is loaded when first needed, or features stored on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.request import CaptionFeatures, TextInputs
from sfumato.text.cache import CachedReader, cache_features
from sfumato.text.encoders import CutCaptions, TextEncoder, WordVectors, load_text_encoder
from sfumato.text.prompt_reader import PromptReader


class Zeros:
    """Stands for a text encoder where only sizes matter: all captions have the maximum length, and features are 0."""

    name = "zeros"

    def __init__(self, longest: int, width: int):
        self.longest, self.width = longest, width

    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """Return the features of each caption's tokens."""
        return [torch.zeros(self.longest, self.width) for _ in captions]


class CaptionReader:
    """Converts captions to the features that a network reads."""

    def __init__(self, encoder: str, longest: int, width: int, null: str | None = None, clean: bool = True):
        """Create a reader; nothing is loaded yet.

        Args:
            encoder: name of the text encoder, see `load_text_encoder`.
            longest: maximum number of text tokens for the network; further tokens are cut off.
            width: number of features per text token that the network reads.
            null: caption that stands for no condition, if the network's unconditional case is a caption; it is read
                with all others.
            clean: whether a T5 cleans captions, see `T5Reader`.
        """
        self.encoder, self.longest, self.width, self.cut = encoder, longest, width, CutCaptions()
        self.clean = clean
        self.always = () if null is None else (null,)
        self._loaded: TextEncoder | CachedReader | None = None

    def use(self, encoder: str) -> None:
        """Switch to another text encoder."""
        self.encoder, self._loaded = encoder, None

    def use_zeros(self) -> None:
        """Read each caption as one of the maximum length with features 0, without any text encoder."""
        self._loaded = Zeros(self.longest, self.width)

    def read(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextInputs:
        """Return the network inputs for these captions, on the CPU; equal captions are encoded once.

        Args:
            captions: one caption per image.
            device: device of a text encoder from the hub.

        Raises:
            UserError: the text encoder cannot be loaded, or a caption is missing from the cache.
        """
        if self._loaded is None:
            self._loaded = load_text_encoder(self.encoder, device, self.longest, self.clean)
        distinct = list(dict.fromkeys((*captions, *self.always)))
        numbers = {caption: number for number, caption in enumerate(distinct)}
        encoded = self._loaded.encode(distinct)
        self.cut.say(distinct, map(len, encoded), self.longest)
        features = CaptionFeatures.padded(encoded, self.longest)
        return TextInputs(
            rows=torch.tensor([numbers[caption] for caption in captions]),
            captions=features,
            null_row=numbers[self.always[0]] if self.always else None,
        )

    def prepare(
        self,
        captions: Sequence[str],
        folder: Path,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Encode captions once and store the features on disk, so that the encoder need not stay in memory.

        Afterwards, no other captions can be read. The bundled word vectors are fast, so they are not cached.

        Args:
            captions: all captions that will be read.
            folder: parent folder of all caches.
            device: device of the text encoder.
            progress: called with the number of captions that are done and the total number.

        Raises:
            UserError: the text encoder cannot be loaded.
        """
        if self.encoder == WordVectors.name:
            return

        def load() -> TextEncoder:
            return load_text_encoder(self.encoder, device, self.longest, self.clean)

        captions = [*captions, *self.always]
        self._loaded = cache_features(
            captions, self.encoder, load, folder, progress, longest=self.longest, clean=self.clean
        )


@runtime_checkable
class ReadsCaptions(Protocol):
    """A generator that has its own text encoder, or text tokenizer, for captions."""

    reader: CaptionReader | PromptReader
