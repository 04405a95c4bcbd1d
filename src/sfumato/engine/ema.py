"""An exponential moving average of the trained weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.engine.replicated import like


class Average:
    """Moving average of trainable parameters: a ← decay · a + (1 - decay) · p after every update."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, start: int):
        """Start with a copy of the parameters.

        Args:
            parameters: trainable parameters by name; sharded ones are averaged shard by shard.
            decay: weight of the old average, from 0 to 1.
            start: number of updates during which the average is a copy of the parameters.
        """
        self.parameters, self.decay, self.start = parameters, decay, start
        self.updates = 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after an update."""
        self.updates += 1
        weight = 1.0 if self.updates <= self.start else 1 - self.decay
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter.detach(), weight)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Restore whole tensors and the number of updates."""
        self.updates = updates
        for name, tensor in self.tensors.items():
            tensor.copy_(like(tensor, tensors[name]))
