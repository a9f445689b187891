"""Keys and values of the tokens seen so far, in buffers of fixed size."""

from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model.config import GPTConfig


class KVCache:
    """What attention needs of the past, for texts of different length, each in a slot.

    Slot s holds `lengths[s]` tokens, at the positions 0 to `lengths[s]` - 1; what lies beyond is
    never attended to, and the slot's next tokens overwrite it.

    Attributes:
        keys: [L, S, H, C, K].
        values: [L, S, H, C, K].
        lengths: How many tokens each slot holds, [S].
        slots: Which slot each row of tokens belongs to, [B]; None if row b belongs to slot b.
    """

    def __init__(
        self,
        config: GPTConfig,
        n_slots: int,
        *,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty cache for `n_slots` texts of at most `capacity` tokens each."""
        self.capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layers, n_slots, config.n_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self.slots: Int[Tensor, " B"] | None = None
        self._rows: Int[Tensor, " B"] | slice = slice(None)
        self._used = 0

    def at(self, slots: Sequence[int]) -> "KVCache":
        """Return the same cache for rows of tokens that belong to these slots, all different."""
        cache = copy(self)
        cache.slots = torch.tensor(slots, dtype=torch.int64, device=self.lengths.device)
        # Neighbours are read where they lie; from others, torch's attention needs a copy.
        neighbours = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        cache._rows = slice(slots[0], slots[0] + len(slots)) if neighbours else cache.slots
        return cache

    def positions(self, n_tokens: int) -> Int[Tensor, "B T"]:
        """Return the positions that the next `n_tokens` tokens of each row take.

        Raises:
            ClearheadError: The longest row has no room for them.
        """
        lengths = self.lengths[self._rows]  # [B]
        longest = int(lengths.max())
        if longest + n_tokens > self.capacity:
            raise ClearheadError(
                f"{longest} tokens and {n_tokens} more do not fit into a cache "
                f"of {self.capacity} positions"
            )
        self._used = longest + n_tokens
        return lengths[:, None] + torch.arange(n_tokens, device=lengths.device)

    def write(
        self,
        layer: int,
        positions: Int[Tensor, "B T"],
        key: Float[Tensor, "B H T K"],
        value: Float[Tensor, "B H T K"],
    ) -> tuple[Float[Tensor, "B H C K"], Float[Tensor, "B H C K"]]:
        """Put new keys and values in their places; return those of all positions in use."""
        slots = self.slots
        if slots is None:
            slots = torch.arange(len(positions), device=positions.device)
        keys, values = self.keys[layer], self.values[layer]  # [S, H, C, K]
        keys[slots[:, None], :, positions] = key.transpose(1, 2).to(keys.dtype)
        values[slots[:, None], :, positions] = value.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self._used][self._rows], values[:, :, : self._used][self._rows]

    def mask(self, positions: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T C"]:
        """Say which of the positions in use each new token may attend to: those up to its own."""
        used = torch.arange(self._used, device=positions.device)
        return (used <= positions[:, :, None])[:, None]

    def advance(self, lengths: Int[Tensor, " B"] | int) -> None:
        """Count the tokens just written: `lengths[b]` of row b are real, the rest is padding."""
        self.lengths[self._rows] += lengths

    def truncate(self, slot: int, n_tokens: int) -> None:
        """Keep only the first `n_tokens` tokens of a slot."""
        self.lengths[slot] = n_tokens

    def copy(self, source: int, target: int, n_tokens: int, *, start: int = 0) -> None:
        """Let a slot hold the first `n_tokens` tokens of another; it has the first `start` already.

        What it held beyond those is gone.
        """
        if source != target:
            new = slice(start, n_tokens)
            self.keys[:, target, :, new] = self.keys[:, source, :, new]
            self.values[:, target, :, new] = self.values[:, source, :, new]
        self.truncate(target, n_tokens)
