"""The interface of an objective, which computes credit from a scored batch, and a loss from the credit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.request import Index
from sfumato.rollout import Batch, Fork


@dataclass(frozen=True, kw_only=True)
class Credit:
    """How strongly to increase (or, if negative, decrease) the probability of each image or token."""

    weights: Float[Tensor, "B #L"]
    """one weight per token, or (B, 1): one for all tokens of an image; 0 leaves the probability unchanged"""
    taught: Bool[Tensor, " B"] | None = None
    """False for images without any effect on the loss's gradient, whose pass can be skipped; None if there are none"""
    kl_weights: Float[Tensor, "B #L"] | None = None
    """factor of the KL of each token; None is 1 for all"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """values to log"""

    def __getitem__(self, index: Index) -> "Credit":
        kl_weights = None if self.kl_weights is None else self.kl_weights[index]
        return Credit(weights=self.weights[index], kl_weights=kl_weights)


@runtime_checkable
class Objective(Protocol):
    """A training objective. It is a frozen dataclass whose fields are its options.

    It may also be one that `LearnsFromPrefixes`, `LearnsFromPreviews`, `LearnsFromTrees`, `LearnsFromData` or
    `LearnsFromEntropy`.
    """

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


@runtime_checkable
class LearnsFromPrefixes(Protocol):
    """An objective that learns from the first units of images only. The passes end there; the tokens of the other
    units are drawn and forgotten, and `Rollout.whole_units` tells how many there were."""

    def prefix_probabilities(self, count: int, /) -> tuple[float, ...]:
        """Return the probabilities that a batch keeps the first 1, 2, ... of `count` units. They add up to 1.

        Raises:
            UserError: a setting does not fit this number of units.
        """
        ...


@runtime_checkable
class LearnsFromPreviews(LearnsFromPrefixes, Protocol):
    """An objective that may learn from the coarse images that the first units alone decode to."""

    @property
    def preview(self) -> bool:
        """Whether only the units that a batch keeps are drawn, decoded and scored. Their number is always the same."""
        ...


@runtime_checkable
class LearnsFromTrees(Protocol):
    """An objective that learns from images that share their first units."""

    @property
    def fork(self) -> Fork:
        """How the images of a group share units. A group consists of at least two trees."""
        ...


@runtime_checkable
class LearnsFromData(Protocol):
    """An objective that learns from the images of a data set instead of drawn ones. The rewards of the run are only
    measured; `sfumato.rollouts.dataset` tells what the rewards of a batch are."""

    @property
    def learns_from(self) -> Literal["conditions", "reconstructions"]:
        """What a batch contains. `conditions`: each image under its own condition and under that of another image;
        `reconstructions`: the true tokens of each image, and tokens drawn given these."""
        ...


@runtime_checkable
class LearnsFromEntropy(Protocol):
    """An objective whose loss needs the exact entropy of the policy, from the same pass as the log-probabilities."""

    needs_entropy: bool
    """True"""

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit, entropy: Float[Tensor, "B L"], /
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Compute the loss as `Objective.loss` does, with the entropy of the distribution of each token (nats; after
        guidance, temperature and truncation; with gradients)."""
        ...
