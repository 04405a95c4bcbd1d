"""The part of Janus-Pro that draws images: a Llama whose image tokens have embeddings and a head of their own (Chen et
al., 2025).

The prompt comes first, padded on the left; the image follows in raster order. The model is exactly as published, so
that released weights load. What it needs only to describe images (the vision tower) is left out, and so is the text
head, unless the model writes a text before the image.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.language_model import LanguageModelNetwork
from sfumato.families.shared import check_heads, check_sizes
from sfumato.nn.linear import Linear


@dataclass(frozen=True, kw_only=True)
class JanusConfig:
    """Shape of Janus-Pro's network; the image vocabulary comes from the tokenizer. The defaults are those of the 1B."""

    depth: int = 24
    """number of blocks"""
    width: int = 2048
    """width of the residual stream"""
    num_heads: int = 16
    """number of attention heads"""
    num_kv_heads: int | None = None
    """number of key and value heads, each shared by a group of query heads; `num_heads` by default"""
    feed_forward_width: int = 5632
    """hidden width of the gated feed-forward network"""
    text_vocab_size: int = 102400
    """number of text tokens"""
    code_width: int = 8
    """width of the learned embedding of an image token, before it is projected to `width`"""
    num_prompt_tokens: int = 256
    """maximum length of a prompt in text tokens"""
    num_reasoning_tokens: int = 0
    """maximum length of the text that is written before the image, in text tokens; 0 for none"""
    end_token: int = 100001
    """id of the text token that ends such a text"""
    text_tokenizer: str = "deepseek-ai/Janus-Pro-1B"
    """text tokenizer: a hub id, or a folder with a `tokenizer.json`"""
    rope_base: float = 10000.0
    """base of the rotary frequencies"""
    norm_eps: float = 1e-6
    """epsilon of the RMS norms"""

    def __post_init__(self):
        check_sizes(self, may_be_zero=("num_reasoning_tokens",))
        check_heads(self, 2)
        if self.num_reasoning_tokens and self.end_token >= self.text_vocab_size:
            raise UserError(f"end_token: {self.end_token} is not below the vocabulary size {self.text_vocab_size}")


class JanusTransformer(LanguageModelNetwork):
    """The network: from the prompt and the image tokens so far to the logits of the next image token, or from the
    prompt and the text so far to those of the next text token.

    The text embedding is frozen: images are drawn from a few of its rows only. The row of the padding token, which is
    the whole content of an unconditional prompt, is one of them.
    """

    def __init__(self, config: JanusConfig, vocab_size: int):
        """Create a network with initial weights.

        Args:
            config: its shape.
            vocab_size: number of image codes.
        """
        super().__init__("Llama", config)
        self.config = config
        width = config.width
        self.code_embedding = nn.Embedding(vocab_size, config.code_width)
        self.aligner_in = Linear(config.code_width, width)
        self.aligner_out = Linear(width, width)
        self.head_in = Linear(width, width)
        self.head = Linear(width, vocab_size)
        if config.num_reasoning_tokens:
            self.text_head = Linear(width, config.text_vocab_size, bias=False)

    def embed_tokens(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N C"]:
        """Embed image tokens, in the type of the residual stream even under autocast."""
        codes = self.code_embedding(tokens)
        return self.aligner_out(F.gelu(self.aligner_in(codes))).type_as(codes)

    def features(self, x: Float[Tensor, "R T C"]) -> Float[Tensor, "R T C"]:
        """Return what the head's last layer reads."""
        return F.gelu(self.head_in(x))

    def score(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next image tokens."""
        return self.head(x)

    def score_text(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next text tokens."""
        return self.text_head(x)
