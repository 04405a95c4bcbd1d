"""The protocol of engines, which own the parameters."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.objectives import Credit
from sfumato.policy import Policy
from sfumato.request import Request
from sfumato.rollout import Batch, Fork, Rollout

Loss = Callable[..., tuple[Float[Tensor, ""], dict[str, Tensor]]]
"""The `loss` method of an objective: of log-probabilities (nats; B, L; with gradients), some images of the batch, their
credit, and, for an objective that `LearnsFromEntropy`, the entropy of the distribution of each token (like the
log-probabilities)."""


@runtime_checkable
class Engine(Protocol):
    """Owner of the parameters: where weights live, how they are updated and saved, and what the reference is.

    Every process calls every method at the same time, because an engine may need all processes.
    """

    policy: Policy
    """policy that draws images"""
    scorer: Policy
    """policy for ratios and the KL: `policy` itself, or the same network with other settings (an ablation)"""

    @property
    def reference_beside(self) -> bool:
        """Whether the reference may score in another thread while the policy draws."""
        ...

    def reference(self) -> AbstractContextManager[Policy]:
        """Provide the frozen model as it was before training, with the scorer's settings.

        Raises:
            RuntimeError: no reference is kept, because the objective needs none.
        """
        ...

    def drawing(self) -> AbstractContextManager[None]:
        """Return a context for drawing images, in which every parameter is at hand."""
        ...

    def sample(
        self, request: Request, seeds: Int[Tensor, " B"], fork: Fork | None = None, count: int | None = None
    ) -> Rollout:
        """Draw as `policy.sample` does, in the way that suits the device; only in the `drawing` context."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that sets the precision of the network's arithmetic."""
        ...

    def update(
        self,
        loss: Loss,
        batch: Batch,
        credit: Credit,
        minibatches: Sequence[Int[Tensor, " M"]],
        learning_rate: float,
    ) -> dict[str, float]:
        """Make one optimizer update per minibatch; return the figures of the loss, averaged over the minibatches.

        Among them are `mismatch/mean` and `mismatch/max`, the absolute difference (nats) between the log-probabilities
        of the rollout and those of the first minibatch, before any update, and `mismatch/ratio`, the mean ratio there.

        Raises:
            UserError: a gradient is not finite.
        """
        ...

    def save(self, folder: Path, previous: Path | None = None) -> Callable[[], None]:
        """Start to write everything that `load` needs to a folder; its subfolder `model/` is a model folder.

        Returns a function that waits until everything is written. Training may go on meanwhile.

        Args:
            folder: an empty folder; created if it does not exist.
            previous: an earlier checkpoint; the new one may link to its unchanged files.
        """
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            UserError: the folder is damaged, or its run started from another base model.
        """
        ...

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Return the network's tensors by name, whole."""
        ...
