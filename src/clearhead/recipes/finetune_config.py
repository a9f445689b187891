"""What fine-tuning is told: one config for all kinds, and one for each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from clearhead.errors import ClearheadError
from clearhead.finetune import Balance, LoRAConfig, PreferenceLoss
from clearhead.recipes.classify import LABEL, TEXT, ClassifyOptions
from clearhead.train import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """What all kinds of fine-tuning are told."""

    base: Positional[Path] = Path()
    """The checkpoint, or the run, to start from."""
    data: Path = Path()
    """The file of examples."""
    val_data: Path | None = None
    """Held-out examples; by default some of `data`."""
    val_fraction: float = 0.1
    """The part of `data` that is held out where there is no `val_data`."""
    skip_bad: bool = False
    """Leave bad rows out and count them, in place of stopping at the first."""
    out: Path = Path("runs/finetuned")
    """The run's folder."""
    which: Literal["newest", "best"] = "newest"
    """Which of a run's checkpoints to start from."""
    epochs: float | None = None
    """Times to go through the examples; 3 unless `steps` or `minutes` says how long."""
    freeze_to: int = 0
    """Leave the embeddings and this many of the first blocks as they are."""
    lora: int | None = None
    """Rank of LoRA adapters; all weights are learnt without."""
    lora_alpha: float | None = None
    """The adapters are added alpha / rank times; alpha is 2·rank by default."""
    lora_targets: tuple[str, ...] = ("qkv",)
    """Layers of each block to adapt: qkv, out_proj, up, down."""
    plain_text: str = "pydocs"
    """Text on which the loss is measured before and after, to see what is forgotten."""
    batch_size: int = 8
    """Sequences in one update: the effective batch."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            kind="adamw", learning_rate=1e-4, beta2=0.999, weight_decay=0.01
        )
    )
    """Which optimiser, and how fast."""
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(kind="cosine", warmup_steps=20)
    )
    """How the learning rate moves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise ClearheadError(f"epochs is {self.epochs}; it must be more than 0")
        if self.epochs is not None and (self.steps is not None or self.minutes is not None):
            raise ClearheadError("give epochs, steps or minutes, only one of them")
        if not 0 < self.val_fraction < 1:
            raise ClearheadError(
                f"val_fraction is {self.val_fraction}; it must lie between 0 and 1"
            )
        if self.freeze_to < 0:
            raise ClearheadError(f"freeze_to is {self.freeze_to}; it must be 0 or more")
        if self.lora is None and self.lora_alpha is not None:
            raise ClearheadError("lora_alpha is given without lora, the adapters' rank")
        self.adapter()

    def adapter(self) -> LoRAConfig | None:
        """Return the adapters to learn; None to learn the weights themselves."""
        if self.lora is None:
            return None
        alpha = 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha
        return LoRAConfig(self.lora, alpha, self.lora_targets)


@dataclass(frozen=True)
class InstructConfig(FinetuneConfig):
    """Learn to answer: instruction, input and output, or chat messages."""

    packed: bool = True
    """Lay several conversations into a row, each of which sees only itself."""


@dataclass(frozen=True)
class PreferConfig(FinetuneConfig):
    """Learn from preferences: of two answers to one prompt, the better one."""

    loss: PreferenceLoss = field(default_factory=PreferenceLoss)
    """How preferences become a loss."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            kind="adamw", learning_rate=1e-5, beta2=0.999, weight_decay=0.0
        )
    )
    """Which optimiser, and how fast."""


@dataclass(frozen=True)
class ClassifyConfig(FinetuneConfig):
    """Learn to tell texts apart."""

    text: str = TEXT
    """The column or field that holds the text; a number from 1 on in a table without a header."""
    label: str = LABEL
    """The column or field that holds the label; a number from 1 on in a table without a header."""
    balance: Balance = "none"
    """What to do where labels are of different frequency: nothing, count the texts of rare ones
    more, or draw each label equally often."""
    test_fraction: float = 0.2
    """The part that is kept for a test at the end."""
    max_length: int | None = None
    """The most tokens of a text to learn from; longer ones keep their beginning. By default the
    model's context."""
    batch_size: int = 32
    """Texts in one update: the effective batch."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            kind="adamw", learning_rate=1e-3, beta2=0.999, weight_decay=0.01
        )
    )
    """Which optimiser, and how fast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options()

    def options(self) -> ClassifyOptions:
        """Return what there is to tell apart, and how it is divided."""
        return ClassifyOptions(
            text=self.text,
            label=self.label,
            balance=self.balance,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            max_length=self.max_length,
            skip_bad=self.skip_bad,
        )
