"""Training: one step, one loop, and all that it takes to go on after a crash."""

from clearhead.train.config import TrainConfig
from clearhead.train.evaluate import Evaluation, evaluate
from clearhead.train.events import (
    Evaluated,
    Event,
    Observer,
    Saved,
    Started,
    Stepped,
    TrainingResult,
)
from clearhead.train.loop import Trainer
from clearhead.train.loss import next_token_loss, summed_loss
from clearhead.train.machine import faster_dtype, keep_freed_memory, resolve_device, resolve_dtype
from clearhead.train.metrics import MetricsLog, plot_metrics
from clearhead.train.objective import NextToken, Objective
from clearhead.train.optim import OptimizerConfig, build_optimizers
from clearhead.train.schedule import ScheduleConfig, rate_factor
from clearhead.train.state import TrainerState
from clearhead.train.step import Gradient, Loss, apply_gradient, compute_gradient

__all__ = [
    "Evaluated",
    "Evaluation",
    "Event",
    "Gradient",
    "Loss",
    "MetricsLog",
    "NextToken",
    "Objective",
    "Observer",
    "OptimizerConfig",
    "Saved",
    "ScheduleConfig",
    "Started",
    "Stepped",
    "TrainConfig",
    "Trainer",
    "TrainerState",
    "TrainingResult",
    "apply_gradient",
    "build_optimizers",
    "compute_gradient",
    "evaluate",
    "faster_dtype",
    "keep_freed_memory",
    "next_token_loss",
    "plot_metrics",
    "rate_factor",
    "resolve_device",
    "resolve_dtype",
    "summed_loss",
]
