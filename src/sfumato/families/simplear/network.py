"""SimpleAR: a Qwen2 whose vocabulary has image codes after its text tokens (Wang et al., 2025).

The prompt comes first, padded on the left; the image follows in raster order. The weights are the published ones; the
distribution is over the image codes alone, in drawing and in scoring.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.language_model import LanguageModelNetwork
from sfumato.families.shared import check_heads, check_sizes
from sfumato.nn.linear import Linear

OPENINGS = (
    "A detailed digital painting of ", "A highly realistic image of ", "An abstract representation of ",
    "A fantasy illustration featuring ", "A photorealistic depiction of ", "A vibrant, colorful scene of ",
    "A surreal dreamscape of ", "A futuristic cityscape with ", "An epic landscape showcasing ",
    "A minimalistic black and white sketch of ", "A cinematic view of ", "An ethereal depiction of ",
    "A hyper-realistic portrayal of ", "An imaginative interpretation of ", "A whimsical illustration of ",
    "A magical world featuring ", "An iconic scene from ", "A steampunk-inspired version of ",
    "A vintage-style artwork of ", "A high-tech sci-fi scene with ",
)  # fmt: skip
"""The beginnings of the prompts that the published model was trained with, one of them at random for each caption."""
PROMPTS = {"training": OPENINGS, "inference": (OPENINGS[1],), "rl": ("A photo of ",)}
"""Beginnings of prompts by the name of a template: those of training, of the published generation script, and of the
published reinforcement learning."""
_NEGATIVE = (
    "An image of aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
    "bad eyes, bad limbs, distortion"
)
NEGATIVES = {"training": "", "inference": _NEGATIVE, "rl": _NEGATIVE}
"""What takes the place of opening and caption in the unconditional prompt, by the name of a template."""


@dataclass(frozen=True, kw_only=True)
class SimpleARConfig:
    """Shape of SimpleAR's network; the image codes come from the tokenizer. The defaults are those of the 0.5B."""

    depth: int = 24
    """number of blocks"""
    width: int = 896
    """width of the residual stream"""
    num_heads: int = 14
    """number of attention heads"""
    num_kv_heads: int = 2
    """number of key and value heads, each shared by a group of query heads"""
    feed_forward_width: int = 4864
    """hidden width of the gated feed-forward network"""
    text_vocab_size: int = 151672
    """number of text tokens, after which the image codes follow"""
    tied: bool = True
    """whether the embedding of image codes is also the head"""
    num_prompt_tokens: int = 256
    """maximum length of a prompt in text tokens"""
    text_tokenizer: str = "Daniel0724/SimpleAR-0.5B-SFT"
    """text tokenizer: a hub id, or a folder with a `tokenizer.json`"""
    prompt: str = "inference"
    """template of prompts: training, inference or rl"""
    rope_base: float = 1000000.0
    """base of the rotary frequencies"""
    norm_eps: float = 1e-6
    """epsilon of the RMS norms"""

    def __post_init__(self):
        check_sizes(self)
        check_heads(self, 2)
        if self.prompt not in PROMPTS:
            raise UserError(f"prompt: {self.prompt!r} is unknown; give {', '.join(PROMPTS)}")


class CodeTable(nn.Embedding):
    """The embedding of image codes, which is the head as well if both are tied."""

    def forward(self, input: Tensor) -> Tensor:
        """Embed codes, or return the scores of all codes for features."""
        return F.linear(input, self.weight) if input.is_floating_point() else super().forward(input)


class SimpleARTransformer(LanguageModelNetwork):
    """The network: from the prompt and the image codes so far to the logits of the next image code.

    The text embedding is frozen: images are drawn from a few of its rows only.
    """

    def __init__(self, config: SimpleARConfig, vocab_size: int):
        """Create a network with initial weights.

        Args:
            config: its shape.
            vocab_size: number of image codes.
        """
        super().__init__("Qwen2", config)
        self.config = config
        width = config.width
        self.code_embedding = CodeTable(vocab_size, width)
        if not config.tied:
            # Images need no scores of text tokens; the rows are kept so that exports are complete.
            self.text_head = nn.Embedding(config.text_vocab_size, width).requires_grad_(False)
            self.head = Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.code_embedding.weight, std=0.02)

    def embed_tokens(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N C"]:
        """Embed image codes."""
        return self.code_embedding(tokens)

    def score(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next image codes."""
        return self.code_embedding(x) if self.config.tied else self.head(x)
