"""Keys and values of the tokens seen so far, in buffers of fixed size."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model.config import GPTConfig


class KVCache:
    """What attention needs of the past, for a batch of sequences of different length.

    Row b holds `lengths[b]` tokens, at the positions 0 to `lengths[b]` - 1; what lies beyond is
    never attended to, and the next tokens of the row overwrite it.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        *,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty cache for `batch_size` sequences of at most `capacity` tokens each."""
        self.capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layers, batch_size, config.n_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [L, B, H, C, K]
        self.values = torch.zeros(shape, dtype=dtype, device=device)  # [L, B, H, C, K]
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # [B]
        self._longest = 0
        self.slots: Int[Tensor, " B"] | None = None

    def positions(self, n_tokens: int) -> Int[Tensor, "B T"]:
        """Return the positions that the next `n_tokens` tokens of each row take.

        Raises:
            ClearheadError: The longest row has no room for them.
        """
        if self._longest + n_tokens > self.capacity:
            raise ClearheadError(
                f"{self._longest} tokens and {n_tokens} more do not fit into a cache "
                f"of {self.capacity} positions"
            )
        return self.lengths[:, None] + torch.arange(n_tokens, device=self.lengths.device)

    def write(
        self,
        layer: int,
        positions: Int[Tensor, "B T"],
        key: Float[Tensor, "B H T K"],
        value: Float[Tensor, "B H T K"],
    ) -> tuple[Float[Tensor, "B H C K"], Float[Tensor, "B H C K"]]:
        """Put new keys and values in their places; return those of all positions in use."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]  # [B, 1]
        self.keys[layer][rows, :, positions] = key.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, positions] = value.transpose(1, 2).to(self.values.dtype)
        used = self._longest + positions.shape[1]
        return self.keys[layer, :, :, :used], self.values[layer, :, :, :used]

    def mask(self, positions: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T C"]:
        """Say which of the positions in use each new token may attend to: those up to its own."""
        used = torch.arange(self._longest + positions.shape[1], device=positions.device)
        return (used <= positions[:, :, None])[:, None]

    def advance(self, lengths: Int[Tensor, " B"] | int) -> None:
        """Count the tokens just written: `lengths[b]` of row b are real, the rest is padding."""
        self.lengths = self.lengths + lengths
        self._longest = int(self.lengths.max())

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, given in ascending order; they move up, in place."""
        for new, old in enumerate(rows):
            if new != old:
                self.keys[:, new, :, : self._longest] = self.keys[:, old, :, : self._longest]
                self.values[:, new, :, : self._longest] = self.values[:, old, :, : self._longest]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.lengths = self.lengths[list(rows)]
        self._longest = int(self.lengths.max())
