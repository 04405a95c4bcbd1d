"""What the transformers of all families share."""

import torch
from jaxtyping import Float
from torch import Tensor


class KeyValueCache:
    """Keys and values of one attention layer, written in place into memory allocated once."""

    def __init__(self, batch: int, num_heads: int, length: int, head_width: int, like: Tensor):
        self.keys = torch.empty(batch, num_heads, length, head_width, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    @property
    def batch(self) -> int:
        """Rows held."""
        return len(self.keys)

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` rows."""
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def append(
        self, keys: Float[Tensor, "B H T d"], values: Float[Tensor, "B H T d"]
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Add T positions; returns all N so far (views, not copies)."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
