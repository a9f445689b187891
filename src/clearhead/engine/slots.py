"""Which text lies in which slot of the cache, and what of it another text may share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from clearhead.engine.reading import CHUNK


@dataclass
class Slot:
    """What a slot holds."""

    prompt: list[int] = field(default_factory=list)
    """The tokens that were read in pieces."""
    logits: Float[Tensor, "1 V"] | None = None
    """What followed them."""

    def shares(self, prompt: list[int]) -> int:
        """Return how many of the prompt's tokens need not be computed again."""
        if prompt == self.prompt:
            return len(prompt)
        # The last token is read again, since what follows it is wanted.
        return min(n_alike(prompt, self.prompt), len(prompt) - 1) // CHUNK * CHUNK


class Slots:
    """Free slots, the one that was used longest ago first, and what all of them hold."""

    def __init__(self, n: int) -> None:
        self.held = [Slot() for _ in range(n)]
        self._free = list(range(n))

    def any_free(self) -> bool:
        """Say whether a text may join."""
        return bool(self._free)

    def take(self, prompt: list[int]) -> tuple[int, int, int]:
        """Return a slot for a prompt, the slot to copy its beginning from, and how much of it."""
        shared, source = max(
            ((slot.shares(prompt), number) for number, slot in enumerate(self.held)),
            key=lambda found: (found[0], found[1] in self._free),
        )
        target = source if shared and source in self._free else self._free[0]
        self._free.remove(target)
        return target, source, shared

    def free(self, slot: int) -> None:
        """Let another text have a slot; what it holds may be shared until then."""
        self._free.append(slot)


def n_alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return with how many of the same tokens two texts begin."""
    shorter = min(len(ids), len(others))
    return next((at for at in range(shorter) if ids[at] != others[at]), shorter)
