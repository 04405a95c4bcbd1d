"""GRPO for models that write a text before they draw (T2I-R1, Jiang et al., 2025, arXiv 2505.00703)."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from sfumato.objectives.grpo import GRPO, check_kl_weight, clipped_loss
from sfumato.objectives.objective import Credit
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class ReasoningGRPO(GRPO):
    """GRPO whose mean is over the tokens of text and image: padding after the end of a text does not count. The KL of
    the text has a weight of its own. The images of a group share the caption, and each has its own text."""

    text_kl_weight: float | None = None
    """beta of text tokens; by default that of image tokens, `kl_weight`"""

    def __post_init__(self):
        super().__post_init__()
        check_kl_weight(self._text_kl_weight, "text_kl_weight")

    @property
    def _text_kl_weight(self) -> float:
        return self.kl_weight if self.text_kl_weight is None else self.text_kl_weight

    @property
    def needs_reference(self) -> bool:
        """Whether the KL is part of the loss or logged."""
        return super().needs_reference or self._text_kl_weight > 0

    def credit(self, batch: Batch) -> Credit:
        """Return the advantage of each image as the weight of its tokens, and the weights of their KL. Both are scaled
        so that the mean over all positions is the mean over the tokens of the batch."""
        credit, parts = super().credit(batch), batch.rollout.parts
        text, image = parts["text"].to(credit.weights), parts["image"].to(credit.weights)
        drawn = text + image
        scale = drawn.numel() / drawn.sum()
        return replace(
            credit,
            weights=credit.weights * drawn * scale,
            kl_weights=(self._text_kl_weight * text + self.kl_weight * image) * scale,
        )

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the mean over all tokens of beta·KL - surrogate."""
        return clipped_loss(log_probs, part, credit, self.clip, 1.0, penalty=self.kl)
