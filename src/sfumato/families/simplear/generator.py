"""SimpleAR as a generator: guided logits of image codes from prompts and drawn codes (Wang et al., 2025)."""

from zlib import crc32

from jaxtyping import Bool, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.next_token_generator import NextToken
from sfumato.families.simplear.network import NEGATIVES, PROMPTS, SimpleARConfig, SimpleARTransformer
from sfumato.families.simplear.tokenizer import CosmosTokenizer
from sfumato.policy import Card
from sfumato.request import Inputs, Request, TokenInputs, Words, inputs_of
from sfumato.text.prompt_reader import PromptReader

PADDING = "<|endoftext|>"


class SimpleAR(NextToken):
    """SimpleAR as a generator of images; see `NextToken`.

    The unconditional prompt is a negative prompt, the same for all captions. The published guidance works on
    log-probabilities of text tokens and codes together; on the codes, this is the same distribution.
    """

    network: SimpleARTransformer
    tokenizer: CosmosTokenizer

    def __init__(self, config: SimpleARConfig, tokenizer: CosmosTokenizer, card: Card | None = None):
        network = SimpleARTransformer(config, tokenizer.config.vocab_size)
        super().__init__(network, tokenizer, card or Card(family="simplear"))
        self.config = config
        self.reader = PromptReader(
            config.text_tokenizer,
            "<|t2i|>{caption}<|soi|>",
            config.num_prompt_tokens,
            padding=PADDING,
            vocab_size=config.text_vocab_size,
            null=f"<|t2i|>{NEGATIVES[config.prompt]}<|soi|>",
        )

    def inputs(self, words: Words) -> TokenInputs:
        """Return the token ids of prompts with these captions, and of the negative prompt.

        If the template has several openings, a caption always has the same one, so that it has one distribution.
        """
        openings = PROMPTS[self.config.prompt]
        return self.reader.read([openings[crc32(c.encode()) % len(openings)] + c for c in words.captions])

    def rows(self, inputs: Inputs) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"] | None]:
        """Return the number of each image's prompt, and which images are unconditional."""
        if not isinstance(inputs, TokenInputs) or inputs.null_row is None:
            raise UserError(f"inputs: this model reads captions, not {type(inputs).__name__}")
        return inputs.rows, inputs.null

    def rows_with_guidance(
        self, inputs: Inputs | Request, strengths: tuple[float, ...] | None
    ) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """Return numbers of prompts, and which rows are unconditional; these have the negative prompt."""
        numbers, null = super().rows_with_guidance(inputs, strengths)
        asked = inputs_of(inputs)
        assert isinstance(asked, TokenInputs)
        assert asked.null_row is not None
        return numbers.masked_fill(null, asked.null_row), null

    def condition(
        self, inputs: Inputs, numbers: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Int[Tensor, "R P"], Bool[Tensor, "R P"]]:
        """Return the token ids of prompts, and which are not padding on the left."""
        assert isinstance(inputs, TokenInputs)
        length, longest = inputs.ids.shape[1], self.config.num_prompt_tokens
        if length > longest:
            raise UserError(f"prompts: {length} tokens are too many; the model reads at most {longest}")
        return inputs.ids[numbers], inputs.mask[numbers]
