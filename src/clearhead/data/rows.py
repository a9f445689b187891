"""What goes through a model together: tokens, what is to be learnt of each, and how much."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""The target of a position at which nothing is to be learnt."""


@dataclass(frozen=True)
class Rows:
    """A batch, or some rows of one."""

    inputs: Int[Tensor, "B *n T"]
    """Tokens."""
    targets: Int[Tensor, "B *n T"]
    """What the model should say after each: the next token or a label; or `IGNORED`."""
    documents: Int[Tensor, "B T"] | None = None
    """Which of its row's documents a token belongs to, where a row holds several."""
    weights: Float[Tensor, "B T"] | None = None
    """How much each target counts; 1 by default."""

    def __len__(self) -> int:
        return len(self.inputs)

    def total(self) -> float:
        """Return what the summed loss is divided by: how much is to be learnt here."""
        learnt = self.targets != IGNORED
        counted = learnt if self.weights is None else self.weights * learnt
        return float(counted.sum())

    def to(self, device: torch.device) -> Self:
        """Return the same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def part(self, start: int, stop: int) -> Self:
        """Return some of the rows."""
        return self._map(lambda tensor: tensor[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: change(one) for name, one in tensors.items() if one is not None}
        )
