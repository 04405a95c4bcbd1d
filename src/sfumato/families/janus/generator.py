"""Janus-Pro as a generator: guided logits from prompts and drawn tokens, and images (Chen et al., 2025)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.janus.network import JanusConfig, JanusTransformer
from sfumato.families.next_token_generator import NextToken
from sfumato.families.shared import caption_inputs
from sfumato.families.vq import VQModel
from sfumato.policy import Card
from sfumato.request import Inputs, TokenInputs, Words
from sfumato.text.prompt_reader import PromptReader

PROMPT = "<｜begin▁of▁sentence｜><|User|>: {caption}\n\n<|Assistant|>:<begin_of_image>"
"""The published prompt."""
PADDING = "<｜▁pad▁｜>"


class Janus(NextToken):
    """Janus-Pro as a generator of images; see `NextToken`.

    An unconditional prompt is the prompt with padding tokens in the place of everything between its first and its last
    token. The network reads them, so the unconditional distribution depends on the length of the prompt, and on nothing
    else in it. The padding on the left, which prompts of different lengths have in a batch, is masked.
    """

    network: JanusTransformer
    tokenizer: VQModel

    def __init__(self, config: JanusConfig, tokenizer: VQModel, card: Card | None = None):
        network = JanusTransformer(config, tokenizer.config.vocab_size)
        super().__init__(network, tokenizer, card or Card(family="janus"))
        self.config = config
        self.reader = PromptReader(
            config.text_tokenizer,
            PROMPT,
            config.num_prompt_tokens,
            padding=PADDING,
            vocab_size=config.text_vocab_size,
        )

    def inputs(self, words: Words) -> TokenInputs:
        """Return the token ids of prompts with these captions."""
        return self.reader.read([caption.strip() for caption in words.captions])

    def rows(self, inputs: Inputs) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"] | None]:
        """Return the number of each image's prompt, and which images are unconditional."""
        asked = caption_inputs(inputs, TokenInputs)
        return asked.rows, asked.null

    def condition(
        self, inputs: Inputs, numbers: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Int[Tensor, "R P"], Bool[Tensor, "R P"]]:
        """Return the token ids of prompts, and which are not padding on the left."""
        assert isinstance(inputs, TokenInputs)
        length, longest = inputs.ids.shape[1], self.config.num_prompt_tokens + self.config.num_reasoning_tokens
        if length > longest:
            raise UserError(f"prompts: {length} tokens are too many; the model reads at most {longest}")
        ids, mask = inputs.ids[numbers], inputs.mask[numbers]
        inner = mask & F.pad(mask[:, :-1], (1, 0), value=False)
        inner = F.pad(inner[:, :-1], (0, 1), value=False)
        return torch.where(null[:, None] & inner, inputs.padding, ids), mask
