"""Janus-Pro that writes a text about the image before it draws it (T2I-R1, Jiang et al., 2025, arXiv 2505.00703).

The text is the answer to a prompt of its own. The image is then drawn from the usual prompt, with the text after the
caption. As in the public code, the network therefore reads two sequences; here the tokens of the text enter the second
one as they were drawn, and are not read anew.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.errors import UserError
from sfumato.families.janus.generator import PROMPT, Janus
from sfumato.families.janus.network import JanusConfig, JanusTransformer
from sfumato.families.next_token_generator import NextTokenState
from sfumato.families.shared import caption_inputs, check_step, with_parts
from sfumato.families.vq import VQModel
from sfumato.policy import Card
from sfumato.request import Index, Inputs, Request, TokenInputs, Words
from sfumato.settings import PLAIN, Settings
from sfumato.text.prompt_reader import PromptReader

END = "<｜end▁of▁sentence｜>"
REASONING_PROMPT = (
    "<｜begin▁of▁sentence｜>You read the caption of an image, and say what the image shows.\n\n"
    '<|User|>: The caption of an image is: "{caption}"\n'
    "Describe this image in at most 50 words, without an introduction. Name every object of the caption. Say how many "
    "there are, what color, shape and texture they have, and where they are, if the caption says so. Add nothing that "
    "the caption does not say.\n\n<|Assistant|>:"
)
"""The prompt of the text. It asks for what T2I-R1's prompt asks for, in other words."""


@dataclass(frozen=True, kw_only=True)
class ReasoningInputs:
    """Inputs for B images: the prompts of the texts, and those of the images, which the texts are yet to be put in."""

    text: TokenInputs
    """prompts of the texts"""
    image: TokenInputs
    """prompts of the images"""
    tail: int
    """number of tokens at the end of an image's prompt that come after the text"""

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: Index) -> "ReasoningInputs":
        return replace(self, text=self.text[index], image=self.image[index])

    def drop(self, null: Bool[Tensor, " B"]) -> "ReasoningInputs":
        """Return a copy in which these images are unconditional. Their texts are not."""
        return replace(self, image=self.image.drop(null))

    def to(self, device: torch.device | str) -> "ReasoningInputs":
        """Return a copy on another device."""
        return replace(self, text=self.text.to(device), image=self.image.to(device))


@dataclass(kw_only=True)
class ReasoningState:
    """State of decoding B images."""

    inputs: ReasoningInputs
    settings: Settings
    """settings of the image"""
    writing: NextTokenState | None
    """state of the text; None once it is complete"""
    drawing: NextTokenState | None = None
    """state of the image; None before"""
    text: Int[Tensor, "B T"]
    """tokens of the text; those to come are 0"""
    ended: Bool[Tensor, "B 1"]
    """whether the text has ended"""
    drawn: int = 0
    """number of tokens whose logits have been computed"""


class ReasoningJanus(nn.Module):
    """Janus-Pro as a generator of texts and images.

    The first `num_reasoning_tokens` tokens are the text, each from the vocabulary of the text; the others are the
    image. A text ends with the end token, or is cut at the maximum length. After the end, all text tokens are the end
    token with probability 1: padding, which no other token depends on.

    The text has no guidance. The unconditional prompt of an image has padding tokens in the place of caption and text,
    as in the public code, so it depends on the length of both. A list of guidance strengths must begin with a 1 for
    each text token.
    """

    reduces_logits = True

    def __init__(self, config: JanusConfig, tokenizer: VQModel, card: Card | None = None):
        super().__init__()
        self.painter = Janus(config, tokenizer, card)
        self.card, self.config, self.length = self.painter.card, config, config.num_reasoning_tokens
        self.units: tuple[int, ...] = (1,) * self.length + self.painter.units
        self.part_units = (self.length, len(self.painter.units))

    @property
    def network(self) -> JanusTransformer:
        """The network that writes and draws."""
        return self.painter.network

    @property
    def tokenizer(self) -> VQModel:
        """The image tokenizer."""
        return self.painter.tokenizer

    @property
    def reader(self) -> PromptReader:
        """The reader of captions."""
        return self.painter.reader

    @property
    def writer(self) -> Janus:
        """The generator of the text alone."""
        twin = copy.copy(self.painter)
        twin.units, twin.text = (1,) * self.length, True
        return twin

    def inputs(self, words: Words) -> ReasoningInputs:
        """Return the token ids of both prompts for these captions.

        Raises:
            UserError: the text tokenizer is that of another model.
        """
        captions = [caption.strip() for caption in words.captions]
        self.reader.check_id(END, self.config.end_token)
        return ReasoningInputs(
            text=self.reader.read(captions, template=REASONING_PROMPT),
            image=self.reader.read([f"{caption}." for caption in captions]),
            tail=len(self.reader.encode(PROMPT.partition("{caption}")[2])),
        )

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply the top-k and nucleus filters of transformers: removed logits become -inf; 0 turns either off."""
        return Janus.filter(logits, top_k, top_p)

    def with_network(self, network: nn.Module) -> "ReasoningJanus":
        """Return a copy of this generator with another network; everything else is shared."""
        return with_parts(self, painter=self.painter.with_network(network))

    def start(self, inputs: Inputs | Request, settings: Settings = PLAIN) -> ReasoningState:
        """Return a new decoding state."""
        asked = caption_inputs(inputs, ReasoningInputs)
        text = asked.text.ids.new_zeros(len(asked), self.length)
        return ReasoningState(
            inputs=asked,
            settings=self._image_settings(settings),
            writing=self.writer.start(asked.text),
            text=text,
            ended=torch.zeros_like(text[:, :1], dtype=torch.bool),
        )

    def step(self, state: ReasoningState, drawn: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Return logits of the next token, of the text or guided ones of the image, given the previous one (None for
        the first token)."""
        number = state.drawn
        check_step(number, len(self.units), drawn, "token", "one")
        state.drawn += 1
        if drawn is not None and number <= self.length:
            state.text[:, number - 1 : number] = drawn
            state.ended = state.ended | (drawn == self.config.end_token)
        if number < self.length:
            return self._write(state, drawn)
        if number == self.length:
            inputs = self.image_inputs(state.inputs, state.text)
            state.writing, state.drawing, drawn = None, self.painter.start(inputs, state.settings), None
        assert state.drawing is not None
        return self.painter.step(state.drawing, drawn)

    def _write(self, state: ReasoningState, drawn: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Return logits of the next text token; after the end, they are certain."""
        assert state.writing is not None
        certain = torch.full((self.config.text_vocab_size,), -torch.inf, device=state.ended.device)
        certain[self.config.end_token] = 0.0
        if drawn is not None and state.ended.all():  # nothing is left to compute
            return certain.expand(len(drawn), 1, -1)
        logits = self.writer.step(state.writing, drawn)
        return torch.where(state.ended[..., None], certain.type_as(logits), logits)

    def logits(
        self,
        inputs: Inputs | Request,
        tokens: Int[Tensor, "B L"],
        settings: Settings = PLAIN,
        reduction: Reduction | None = None,
    ) -> Float[Tensor, "B L *F"]:
        """Return a function of the guided logits of all tokens, each given the true ones before it; see `HasParts`."""
        if reduction is None:
            raise ValueError("reduction: text and image have no logits in common; give a function of them")
        if tokens.shape[1] != len(self.units):
            raise UserError(
                f"num_reasoning_tokens: a text and an image have {len(self.units)} tokens, but {tokens.shape[1]} are "
                "given; load the model with the length of these texts"
            )
        asked, text, image = caption_inputs(inputs, ReasoningInputs), tokens[:, : self.length], tokens[:, self.length :]
        drawn = self.drawn_text(text)
        spare = int((~drawn).sum(1).min())  # padding at the end of all texts is not computed
        count = self.length - spare
        written = self.writer.logits(asked.text, text[:, :count], PLAIN, reduction, count)
        seen = drawn[:, :count].view(*drawn[:, :count].shape, *[1] * (written.ndim - 2))
        written = torch.where(seen, written, 0.0)
        rest = written.new_zeros(len(tokens), spare, *written.shape[2:])

        def function(logits: Tensor, span: slice) -> Tensor:
            return reduction.function(logits, slice(span.start + self.length, span.stop + self.length))

        later = Reduction(function, reduction.positions)
        prompts = self.image_inputs(asked, text)
        painted = self.painter.logits(prompts, image, self._image_settings(settings), later)
        return torch.cat([written, rest, painted], dim=1)

    def drawn_text(self, text: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Return which tokens of texts are not padding: those up to the first end token, which is one of them."""
        ends = (text == self.config.end_token).int()
        return ends.cumsum(1) - ends == 0

    def image_inputs(self, inputs: ReasoningInputs, text: Int[Tensor, "B T"]) -> TokenInputs:
        """Return the prompts of the images, with a text in each."""
        prompts, tail = inputs.image, inputs.tail
        ids, mask = prompts.ids[prompts.rows], prompts.mask[prompts.rows]
        kept = self.drawn_text(text) & (text != self.config.end_token)
        ids = torch.cat([ids[:, :-tail], text, ids[:, -tail:]], dim=1)
        mask = torch.cat([mask[:, :-tail], kept, mask[:, -tail:]], dim=1)
        order = mask.int().argsort(dim=1, stable=True)  # moves all padding to the left
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        spare = int((~mask).sum(1).min())
        return TokenInputs(
            rows=torch.arange(len(ids), device=ids.device),
            ids=ids.masked_fill(~mask, prompts.padding)[:, spare:],
            mask=mask[:, spare:],
            padding=prompts.padding,
            null=prompts.null,
        )

    def parts(self, tokens: Int[Tensor, "B L"]) -> dict[str, Bool[Tensor, "B L"]]:
        """Return which tokens are of the text, with the end token, and which are of the image."""
        count = tokens.shape[1] - self.length
        text = F.pad(self.drawn_text(tokens[:, : self.length]), (0, count), value=False)
        image = (torch.arange(tokens.shape[1], device=tokens.device) >= self.length).expand_as(text)
        return {"text": text, "image": image}

    def texts(self, tokens: Int[Tensor, "B L"]) -> tuple[str, ...]:
        """Return the texts in words.

        Raises:
            UserError: the text tokenizer cannot be loaded.
        """
        texts = tokens[:, : self.length]
        rows: Sequence[list[int]] = [
            text[kept].tolist() for text, kept in zip(texts.cpu(), self.drawn_text(texts).cpu(), strict=True)
        ]
        return tuple(self.reader.decode(row) for row in rows)

    def decode(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Decode the image tokens to images in [0, 1]."""
        return self.painter.decode(tokens[:, self.length :])

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Images of a data set have no texts.

        Raises:
            UserError: always.
        """
        raise UserError("data: this model writes a text before each image, and images have none; use janus-pro-1b")

    def _image_settings(self, settings: Settings) -> Settings:
        """Return the guidance of the image."""
        guidance = settings.guidance
        if isinstance(guidance, tuple):
            guidance = settings.at("guidance", len(self.units))
            if any(strength != 1 for strength in guidance[: self.length]):
                raise UserError(f"guidance: the text has none; let the list begin with {self.length} times 1")
            guidance = guidance[self.length :]
        return Settings(guidance=guidance)


def build_janus(config: JanusConfig, tokenizer: VQModel, card: Card | None = None) -> Janus | ReasoningJanus:
    """Return the generator for a shape: with a text before the image, or without."""
    return (ReasoningJanus if config.num_reasoning_tokens else Janus)(config, tokenizer, card)
