"""LlamaGen as a generator: guided logits from classes or captions and drawn tokens, and images (Sun et al., 2024)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer
from sfumato.families.next_token_generator import NextToken
from sfumato.families.shared import class_inputs, keep_top_k, number_classes
from sfumato.families.vq import VQModel
from sfumato.policy import Card
from sfumato.request import ClassInputs, Inputs, Request, TextInputs, Words
from sfumato.text.reader import CaptionReader


class LlamaGen(NextToken):
    """A next-token generator from classes or captions; see `NextToken`."""

    reader: CaptionReader
    network: LlamaGenTransformer
    tokenizer: VQModel

    def __init__(
        self, config: LlamaGenConfig, tokenizer: VQModel, card: Card | None = None, guidance_interval: int = -1
    ):
        shape, card = tokenizer.config, number_classes(card or Card(family="llamagen"), config.num_classes)
        network = LlamaGenTransformer(config, shape.grid_size, shape.vocab_size)
        super().__init__(network, tokenizer, card, guidance_interval)
        self.config = config
        if config.caption_width:  # class-conditional models lack this attribute, so they are not `ReadsCaptions`
            self.reader = CaptionReader(config.text_encoder, config.num_caption_tokens, config.caption_width)

    def inputs(self, words: Words) -> ClassInputs | TextInputs:
        """Return the class numbers, or the features of the captions; equal captions are encoded once."""
        if not self.config.caption_width:
            return class_inputs(words, self.config.num_classes)
        return self.reader.read(words.captions, next(self.network.parameters()).device)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply LlamaGen's top-k and nucleus filter: removed logits become -inf; 0 turns either off (as does top_p 1).

        Top-k keeps ties with the k-th token. The nucleus keeps the most likely tokens up to and including the first at
        which their cumulative probability exceeds top_p. VAR's filter excludes this token.
        """
        logits = keep_top_k(logits, top_k)
        if 0 < top_p < 1:
            descending, order = logits.sort(dim=-1, descending=True)
            passed = descending.softmax(-1).cumsum(-1) > top_p
            removed = F.pad(passed[..., :-1], (1, 0), value=False)
            logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
        return logits

    def rows(self, inputs: Inputs) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"] | None]:
        """Return class or caption numbers, and which images are unconditional."""
        if isinstance(inputs, TextInputs) != bool(self.config.caption_width):
            kind = "captions" if self.config.caption_width else "classes"
            raise UserError(f"inputs: this model reads {kind}, not {type(inputs).__name__}")
        assert isinstance(inputs, ClassInputs | TextInputs)
        return inputs.rows if isinstance(inputs, TextInputs) else inputs.labels, inputs.null

    def rows_with_guidance(
        self, inputs: Inputs | Request, strengths: tuple[float, ...] | None
    ) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """Return numbers of conditions, and which rows are unconditional; these have the null class."""
        numbers, null = super().rows_with_guidance(inputs, strengths)
        return (numbers if self.config.caption_width else numbers.masked_fill(null, self.config.num_classes)), null

    def condition(
        self, inputs: Inputs, numbers: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Int[Tensor, " R"] | Float[Tensor, "R P W"], Bool[Tensor, "R P"] | None]:
        """Return the classes, or the caption features and which are not padding; a null caption keeps its padding."""
        if not isinstance(inputs, TextInputs):
            return numbers, None
        text, longest = inputs.captions, self.config.num_caption_tokens
        if text.features.shape[1] > longest or text.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features have shape {tuple(text.features.shape)}, but the model reads at most {longest} "
                f"tokens of width {self.config.caption_width}; use the text encoder {self.config.text_encoder!r}"
            )
        unconditional = self.network.null_caption[longest - text.features.shape[1] :]
        features = torch.where(null[:, None, None], unconditional, text.features[numbers].type_as(unconditional))
        return features, text.mask[numbers]
