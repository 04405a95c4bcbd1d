"""Text encoders, which convert captions to the features that a text-conditional generator reads."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor

from sfumato.errors import UserError
from sfumato.notes import note
from sfumato.text.cleaning import clean_caption


@runtime_checkable
class TextEncoder(Protocol):
    """Converts captions to features."""

    name: str
    width: int
    """number of features per text token"""

    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """Return the features of each caption's tokens, on the CPU; each caption has at least one token."""
        ...


class CutCaptions:
    """Says once that captions are too long for a network."""

    def __init__(self) -> None:
        self.told = False

    def say(self, captions: Sequence[str], lengths: Iterable[int], longest: int) -> None:
        """Print a note if a caption has more tokens than the longest that the network reads."""
        for caption, length in zip(captions, lengths, strict=False):
            if length > longest and not self.told:
                self.told = True
                start = textwrap.shorten(caption, 60, placeholder=" ...")
                note(f"captions are cut after {longest} tokens, e.g. {start!r} of {length}")


class WordVectors:
    """The bundled text encoder: a fixed vector for each of MiniLM's word pieces, without context.

    The vectors are the principal components of the all-MiniLM-L6-v2 output for each piece alone
    (`scripts/make_word_vectors.py`), so words with similar meanings have similar vectors.
    """

    name = "word-vectors"

    def __init__(self, folder: Path):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.vectors = safetensors.torch.load_file(folder / "vectors.safetensors")["vectors"].float()
        self.width = self.vectors.shape[1]

    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """Return the vectors of each caption's pieces; an empty caption has the vector of the separator."""
        pieces = self.tokenizer.encode_batch(list(captions), add_special_tokens=False)
        separator = self.tokenizer.token_to_id("[SEP]")
        return [self.vectors[p.ids or [separator]] for p in pieces]


class T5Reader:
    """The encoder of a T5 model; the released text-conditional LlamaGen uses FLAN-T5 XL.

    The features of a caption are the encoder's outputs for its tokens, where the last one is the end-of-sequence token.
    They are computed in bfloat16 on CUDA, as published, and in float32 on other devices.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        longest: int = 120,
        clean: bool = True,
    ):
        """Load the encoder.

        Args:
            name: hub id, e.g. "google/flan-t5-xl", or a folder with config, weights and tokenizer.
            device: device of the encoder.
            batch_size: number of captions that are encoded at once.
            longest: maximum number of tokens per caption, including the end-of-sequence token; longer captions are cut
                off and still end with that token.
            clean: whether captions pass through `clean_caption`, as LlamaGen's do; Infinity's do not.

        Raises:
            UserError: transformers is not installed, or the encoder cannot be loaded or is not a T5 model.
        """
        try:
            from transformers import AutoConfig, AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise UserError(
                f"text_encoder: {name} needs transformers; install it with: pip install 'sfumato[text]'"
            ) from error
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        with _loading_errors(name, "T5"):
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "t5":
                raise OSError(f"its model type is {kind!r}, not 't5'")
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            loaded = T5EncoderModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
            self.model, details = loaded  # pyright: ignore[reportGeneralTypeIssues]
            if details["missing_keys"]:
                raise OSError(f"its weights lack {min(details['missing_keys'])}")
        self.model.requires_grad_(False).eval().to(device)
        self.name, self.width = name, self.model.config.d_model
        self.batch_size, self.longest, self.clean, self.cut = batch_size, longest, clean, CutCaptions()

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """Return the features of each caption's tokens, in float32 on the CPU."""
        features = []
        for first in range(0, len(captions), self.batch_size):
            part = captions[first : first + self.batch_size]
            cleaned = [clean_caption(caption) for caption in part] if self.clean else list(part)
            lengths = map(len, self.tokenizer(cleaned, verbose=False).input_ids)
            self.cut.say(captions[first:], lengths, self.longest)
            batch = self.tokenizer(
                cleaned,
                max_length=self.longest,
                truncation=True,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            ).to(self.model.device)
            rows = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            rows, lengths = rows.float().cpu(), batch.attention_mask.sum(1).tolist()
            features += [row[:length].clone() for row, length in zip(rows, lengths, strict=True)]
        return features


class CLIPReaders:
    """The text encoders of one or several CLIP models, whose features of each token are put side by side; the released
    Switti uses CLIP ViT-L/14 (768 features) and OpenCLIP ViT-bigG/14 (1280).

    All read the same tokens. The features of a caption are the last hidden states, after the final layer norm, from the
    start token to the end-of-sequence token. In the latter an encoder sums up the caption: its features are what
    transformers calls the pooled output. (Of padding, which the published code reads too, they are independent.) They
    are computed in bfloat16 on CUDA, as published, and in float32 on other devices.
    """

    def __init__(
        self, names: Sequence[str], device: torch.device | str = "cpu", batch_size: int = 32, longest: int = 77
    ):
        """Load the encoders.

        Args:
            names: hub ids, e.g. "openai/clip-vit-large-patch14", or folders with config, weights and tokenizer.
            device: device of the encoders.
            batch_size: number of captions that are encoded at once.
            longest: maximum number of tokens per caption, with those of start and end; longer captions are cut off and
                still end with that token. The encoders may read fewer.

        Raises:
            UserError: transformers is not installed, an encoder cannot be loaded or is not a CLIP model, or the
                encoders have different vocabularies.
        """
        self.name = "+".join(names)
        try:
            from transformers import AutoConfig, AutoTokenizer, CLIPTextModel
        except ImportError as error:
            raise UserError(
                f"text_encoder: {self.name} needs transformers; install it with: pip install 'sfumato[text]'"
            ) from error
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        tokenizers, self.models = [], []
        for name in names:
            with _loading_errors(name, "CLIP"):
                kind = AutoConfig.from_pretrained(name).model_type
                if kind not in ("clip", "clip_text_model"):
                    raise OSError(f"its model type is {kind!r}, not 'clip'")
                tokenizers.append(AutoTokenizer.from_pretrained(name))
                loaded = CLIPTextModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
                model, details = loaded  # pyright: ignore[reportGeneralTypeIssues]
                if details["missing_keys"]:
                    raise OSError(f"its weights lack {min(details['missing_keys'])}")
            self.models.append(model.requires_grad_(False).eval().to(device))
        self.tokenizer = tokenizers[0]
        for name, other in zip(names, tokenizers, strict=True):
            if other.get_vocab() != self.tokenizer.get_vocab():
                raise UserError(
                    f"text_encoder: {name} and {names[0]} have different vocabularies; give CLIP models of one"
                )
        self.width = sum(model.config.hidden_size for model in self.models)
        self.batch_size, self.cut = batch_size, CutCaptions()
        self.longest = min(longest, *(model.config.max_position_embeddings for model in self.models))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """Return the features of each caption's tokens, in float32 on the CPU."""
        features = []
        for first in range(0, len(captions), self.batch_size):
            part = list(captions[first : first + self.batch_size])
            self.cut.say(part, map(len, self.tokenizer(part, verbose=False).input_ids), self.longest)
            batch = self.tokenizer(
                part,
                max_length=self.longest,
                truncation=True,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            ).to(self.models[0].device)
            # Without a mask: attention is causal, so no token sees the padding after it.
            rows = torch.cat([model(input_ids=batch.input_ids).last_hidden_state for model in self.models], dim=-1)
            rows, lengths = rows.float().cpu(), batch.attention_mask.sum(1).tolist()
            features += [row[:length].clone() for row, length in zip(rows, lengths, strict=True)]
        return features


def encoder_names(name: str) -> list[str]:
    """Return the parts of a text encoder's name: several CLIP models are joined with a plus sign."""
    return [name] if Path(name).is_dir() else name.split("+")


def load_text_encoder(
    name: str, device: torch.device | str = "cpu", longest: int = 120, clean: bool = True
) -> TextEncoder:
    """Load a text encoder by name.

    Args:
        name: the bundled "word-vectors"; a T5 by hub id ("google/flan-t5-xl") or folder; or CLIP models by hub id or
            folder, joined with a plus sign.
        device: device of a T5 or CLIP encoder; the features are on the CPU.
        longest: maximum number of tokens per caption for a T5 or CLIP, including the end-of-sequence token, which is
            kept when a caption is cut off.
        clean: whether a T5 cleans captions.

    Raises:
        UserError: there is no text encoder of this name, or it cannot be loaded.
    """
    if name == WordVectors.name:
        return _word_vectors()
    names = encoder_names(name)
    for part in names:
        if not Path(part).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", part):
            raise UserError(
                f"text_encoder: {part!r} is neither {WordVectors.name!r} nor a folder; "
                "give one of these, or a hub id like google/flan-t5-xl"
            )
    if len(names) > 1:
        return CLIPReaders(names, device, longest=longest)
    return T5Reader(name, device, longest=longest, clean=clean)


@cache
def _word_vectors() -> WordVectors:
    return WordVectors(Path(str(resources.files("sfumato") / "bundled/word-vectors")))


@contextmanager
def _loading_errors(name: str, kind: str) -> Iterator[None]:
    """Turn errors from transformers, for a folder or a hub id, into one-line UserErrors."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, safetensors.SafetensorError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...").rstrip(".")
        remedy = "copy its files again" if Path(name).exists() else "download it manually and give its folder"
        raise UserError(f"text_encoder: {name} cannot be loaded as a {kind} ({reason}); {remedy}") from error
