"""A network that reads a condition and continues it token by token: what LlamaGen, Janus-Pro and SimpleAR share.

The condition comes first and may be padded on the left. A family adds what the condition and the tokens are, the
blocks, and the head. A condition of text may also be continued with text, if the family has a head for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.nn.attention import KeyValueCache, Slot
from sfumato.nn.chunks import reduced


class NextTokenNetwork(nn.Module):
    """The network: from the condition and the image tokens so far to the logits of the next token."""

    depth: int
    """number of blocks, each of which has a cache"""

    def embed_condition(self, condition: Tensor) -> Float[Tensor, "R P C"]:
        """Embed the condition, in the type of the residual stream even under autocast."""
        raise NotImplementedError

    def embed_tokens(self, tokens: Int[Tensor, "R N"]) -> Float[Tensor, "R N C"]:
        """Embed image tokens."""
        raise NotImplementedError

    def run_blocks(
        self,
        x: Float[Tensor, "R T C"],
        prefix: int,
        mask: Bool[Tensor, "R 1 T T"] | None,
        caches: Sequence[KeyValueCache] | None,
        slot: Slot | None,
    ) -> Float[Tensor, "R T C"]:
        """Run all blocks.

        Args:
            x: the residual stream of the first T positions, or of the one at `slot`.
            prefix: number of positions of the condition among them.
            mask: True for the positions that each attends to; None for itself and all before.
            caches: memory of each block, which gets the keys and values.
            slot: place of a single token in the caches, and its own mask, in a decoding step.
        """
        raise NotImplementedError

    @property
    def last_norm(self) -> Any:
        """The RMS norm after the blocks."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "R T C"]) -> Float[Tensor, "R T C"]:
        """Return what the head reads."""
        return x

    def score(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits, which are an affine function of the features: guidance depends on this."""
        raise NotImplementedError

    def score_text(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next text tokens."""
        raise NotImplementedError

    def forward(
        self,
        condition: Tensor | None,
        tokens: Int[Tensor, "R N"] | None,
        mask: Bool[Tensor, "R P"] | None = None,
        strength: float | Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        slot: Slot | None = None,
        reduction: Reduction | None = None,
        text: bool = False,
    ) -> Float[Tensor, "B T *V"]:
        """Return logits of the token after the condition, and of those after each of `tokens`.

        Args:
            condition: what `embed_condition` reads; None for a decoding step, where it is in the caches.
            tokens: image tokens, from the first; None if only the condition is read.
            mask: True for the text tokens of the condition, False for padding.
            strength: strength of guidance; if given, the second half of the rows must be unconditional.
            caches: memory for the keys and values; without `slot`, it is empty and gets those of the condition.
            slot: place of a single token in the caches, in a decoding step.
            reduction: function of the logits to return instead of them.
            text: whether `tokens` are text as the condition is, and the logits those of text.
        """
        parts = [] if condition is None else [self.embed_condition(condition)]
        prefix = parts[0].shape[1] if parts else 0
        if tokens is not None:
            parts.append(self.embed_condition(tokens) if text else self.embed_tokens(tokens))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        seen = None if mask is None or slot is not None else causal_mask(mask, x.shape[1])
        x = self.run_blocks(x, prefix, seen, caches, slot)
        x = self.last_norm(x[:, max(0, prefix - 1) :])
        with torch.autocast(x.device.type, enabled=False):
            # In bfloat16, sampled and scored log-probabilities would differ about twice as much.
            x = x.type_as(self.last_norm.weight)
            x = x if text else self.features(x)
            if strength is not None:
                # Guidance is applied to the head's input instead of the logits, at half the cost.
                conditional, unconditional = x.chunk(2)
                x = unconditional + strength * (conditional - unconditional)
            head = self.score_text if text else self.score
            return head(x) if reduction is None else reduced(head, x, reduction)


def causal_mask(prefix_mask: Bool[Tensor, "R P"], length: int) -> Bool[Tensor, "R 1 T T"]:
    """Return the attention mask: each position sees itself and all earlier positions except padded text tokens."""
    columns = F.pad(prefix_mask, (0, length - prefix_mask.shape[1]), value=True)[:, None, None]
    square = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device)
    return (square.tril() & columns) | square.tril().triu()
