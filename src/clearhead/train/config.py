"""What a run of training needs to be told."""

from dataclasses import dataclass, field
from typing import Literal

from clearhead.errors import ClearheadError
from clearhead.train.optim import OptimizerConfig
from clearhead.train.schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainConfig:
    """How to train: how long, on how much at once, how often to look."""

    steps: int | None = None
    """Updates to make; or say `minutes`."""
    minutes: float | None = None
    """Time to train for; the steps that fit are planned once the speed is known."""
    batch_size: int = 32
    """Sequences in one update: the effective batch."""
    micro_batch_size: int | None = None
    """Sequences that go through the model at once; all by default. Fewer take less memory."""
    evaluate_every: int | None = None
    """Steps between evaluations, each after a checkpoint; a tenth of the run by default."""
    evaluation_tokens: int = 200_000
    """The most held-out tokens that an evaluation uses."""
    patience: int | None = None
    """Evaluations without a lower loss after which the run ends; never by default."""
    measure_every: int | None = None
    """Steps between measurements of what each head looks for, which `lens history` shows; none by
    default."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, beside the best."""
    seed: int = 0
    """Decides the first weights, the order of the data and dropout."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products are computed in; auto measures which is faster on the device."""
    compile: bool = False
    """Compile the blocks with torch.compile; needs a C++ compiler on a CPU."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Which optimiser, and how fast."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate moves."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise ClearheadError("give steps or minutes, not both")
        for name in (
            "steps",
            "minutes",
            "micro_batch_size",
            "evaluate_every",
            "patience",
            "measure_every",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ClearheadError(f"{name} is {value}; it must be more than 0")
        for name in ("batch_size", "evaluation_tokens", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ClearheadError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ClearheadError(f"seed is {self.seed}; it must lie between 0 and 2^63 - 1")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ClearheadError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
