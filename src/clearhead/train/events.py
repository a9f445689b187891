"""What a run tells those who watch it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clearhead.train.evaluate import Evaluation


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on."""

    step: int
    """Updates made before."""
    steps: int | None
    """Updates that the run will make, if that is known."""
    n_parameters: int
    """How many weights the model has, a tied head once."""
    train_tokens: int
    """Tokens to train on."""
    held_out_tokens: int
    """Tokens held out."""
    tokenizer: str
    """The tokenizer's name."""
    device: str
    """Where the model lies."""
    dtype: str
    """What the matrix products are computed in."""


@dataclass(frozen=True)
class Stepped:
    """An update was made."""

    step: int
    """Updates made so far."""
    steps: int | None
    """Updates that the run will make, once that is known."""
    loss: float
    """Training loss before the update, in nats a token."""
    tokens_per_second: float
    """Over this step."""
    seconds_left: float | None
    """Until the end, going by the steps so far."""


@dataclass(frozen=True)
class Evaluated:
    """The model was measured on held-out text."""

    step: int
    """Updates made so far."""
    evaluation: Evaluation
    """What was measured."""
    is_best: bool
    """Whether no evaluation before was as good."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    path: Path
    """Its folder."""


Event = Started | Stepped | Evaluated | Saved
Observer = Callable[[Event], None]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Updates made."""
    finished: bool
    """False if it was told to stop before its end."""
    checkpoint: Path
    """The newest checkpoint."""
    evaluation: Evaluation | None
    """The last measurement on held-out text, of a finished run."""
    best_step: int | None
    """The evaluated step with the lowest validation loss."""
    best_loss: float | None
    """That loss, in nats a token."""
