"""How the learning rate moves over a run."""

import math
from dataclasses import dataclass
from typing import Literal

from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class ScheduleConfig:
    """The shape of the learning rate over the steps of a run."""

    kind: Literal["cosine", "wsd"] = "wsd"
    """cosine: down along half a cosine; wsd: warm up, stay, decay along a line."""
    warmup_steps: int = 50
    """Steps over which the rate rises from 0."""
    decay_fraction: float = 0.4
    """Part of the run, at its end, over which wsd decays."""
    final_fraction: float = 0.0
    """What part of the full rate is left at the end."""

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "wsd"):
            raise ClearheadError(f"schedule.kind is {self.kind!r}; it must be cosine or wsd")
        if self.warmup_steps < 0:
            raise ClearheadError(f"schedule.warmup_steps is {self.warmup_steps}; at least 0")
        for name in ("decay_fraction", "final_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ClearheadError(f"schedule.{name} is {value}; it must lie between 0 and 1")


def rate_factor(config: ScheduleConfig, step: int, steps: int | None) -> float:
    """Return what part of the full learning rate step `step` (from 0) of `steps` uses.

    A run whose length is not yet known (`steps` is None) has not begun to decay.
    """
    factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if steps is None:
        return factor
    if config.kind == "cosine":
        done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        left = min(1.0, (steps - step) / max(1.0, config.decay_fraction * steps))
    return factor * (config.final_fraction + (1 - config.final_fraction) * left)
