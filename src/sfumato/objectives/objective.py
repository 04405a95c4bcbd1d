"""The interface of an objective, which computes credit from a scored batch, and a loss from the credit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.request import Index
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class Credit:
    """How strongly to increase (or, if negative, decrease) the probability of each image or token."""

    weights: Float[Tensor, "B #L"]
    """one weight per token, or (B, 1): one for all tokens of an image; 0 leaves the probability unchanged"""
    taught: Bool[Tensor, " B"] | None = None
    """False for images without any effect on the loss's gradient, whose pass can be skipped; None if there are none"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """values to log"""

    def __getitem__(self, index: Index) -> "Credit":
        return Credit(weights=self.weights[index])


@runtime_checkable
class Objective(Protocol):
    """A training objective. It is a frozen dataclass whose fields are its options."""

    @property
    def needs_reference(self) -> bool:
        """Whether `Batch.reference_log_probs` are used; if not, no reference is kept in memory or run."""
        ...

    def credit(self, batch: Batch, /) -> Credit:
        """Compute the credit of an entire batch; called once per batch."""
        ...

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit, /
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Compute the loss of a part of the batch and scalar values to log, all as means over its images.

        Args:
            log_probs: log-probabilities (nats) of the part's tokens under the policy, with gradients.
            part: some images of the batch.
            credit: the credit of these images.
        """
        ...
