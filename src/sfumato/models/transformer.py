"""What the transformers of all families share."""

from jaxtyping import Float
from torch import Tensor


class KeyValueCache:
    """Keys and values of one attention layer, written in place into memory allocated once.

    The memory is allocated for `length` positions when the first come, in their type: under autocast that is not the
    type of the network's weights.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, length: int):
        self.capacity = length
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
        if not self.length:
            batch, num_heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, num_heads, self.capacity, width)
            self.values = values.new_empty(batch, num_heads, self.capacity, width)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
