"""The protocol of engines, which own the parameters."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.objectives import Credit
from sfumato.policy import Policy
from sfumato.rollout import Batch

Loss = Callable[[Float[Tensor, "B L"], Batch, Credit], tuple[Float[Tensor, ""], dict[str, Tensor]]]
"""The `loss` method of an objective."""


@runtime_checkable
class Engine(Protocol):
    """Owner of the parameters: where weights live, how they are updated and saved, and what the reference is.

    Every process calls every method at the same time, because an engine may need all processes.
    """

    policy: Policy
    """policy that draws images"""
    scorer: Policy
    """policy for ratios and the KL: `policy` itself, or the same network with other settings (an ablation)"""

    def reference(self) -> AbstractContextManager[Policy]:
        """Provide the frozen model as it was before training, with the scorer's settings.

        Raises:
            RuntimeError: no reference is kept, because the objective needs none.
        """
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that sets the precision of the network's arithmetic."""
        ...

    def update(
        self,
        loss: Loss,
        batch: Batch,
        credit: Credit,
        minibatches: Iterable[Int[Tensor, " M"]],
        learning_rate: float,
    ) -> dict[str, float]:
        """Make one optimizer update per minibatch; return the figures of the loss, averaged over the minibatches.

        `mismatch` is among them: the mean absolute difference (nats) between the log-probabilities of the rollout and
        those of the first minibatch, before any update.

        Raises:
            UserError: a gradient is not finite.
        """
        ...

    def save(self, folder: Path, previous: Path | None = None) -> None:
        """Write everything that `load` needs to a folder; its subfolder `model/` is a model folder.

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
        """Return the network's tensors by name."""
        ...
