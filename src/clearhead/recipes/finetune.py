"""From a trained model and a file of examples to a model that answers, prefers or classifies."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from tyro.conf import Positional

from clearhead import checkpoint, config
from clearhead.errors import ClearheadError
from clearhead.finetune import (
    Answers,
    Balance,
    Example,
    Examples,
    LoRAConfig,
    PreferenceLoss,
    Preferences,
    Row,
    add_lora,
    encode_conversation,
    encode_pair,
    lora_config,
    messages_of,
    pair_of,
    read_examples,
    save_adapter,
)
from clearhead.model import GPT
from clearhead.recipes.classify import (
    LABEL,
    TEXT,
    ClassifyOptions,
    build_classification,
    read_labelled,
    save_texts,
)
from clearhead.recipes.ledger import (
    LEDGER,
    Stage,
    as_document,
    finish,
    measured,
    origin,
    read_ledger,
    text_loss,
)
from clearhead.recipes.load import load
from clearhead.recipes.run_folder import claim, write_run
from clearhead.tokenizer import CHAT_TEMPLATE, Tokenizer
from clearhead.train import (
    Objective,
    Observer,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    Trainer,
    TrainingResult,
    keep_freed_memory,
    plot_metrics,
    resolve_device,
    resolve_dtype,
)

T = TypeVar("T")
_EPOCHS = 3.0
_log = logging.getLogger(__name__)


class Task(Objective, Protocol):
    """An objective that goes through its examples in epochs."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches go once through what there is to train on."""


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


def fine_tune(
    settings: FinetuneConfig, *, resume: bool = False, observers: Sequence[Observer] = ()
) -> TrainingResult:
    """Fine-tune a model, or go on where a run was left.

    Args:
        settings: What to do; its class says which kind.
        resume: Go on from the newest checkpoint in `settings.out`; begin if there is none yet.
        observers: Called with each event of the run.

    Returns:
        How the run ended; its folder is as that of `pretrain`, and its checkpoints tell in
        clearhead/ledger.json what they were made from, and what it cost and gained.

    Raises:
        ClearheadError: Anything about the input or the machine that a person can mend.
    """
    _check_given(settings)
    keep_freed_memory()
    run = settings.out
    base = checkpoint.resolve(settings.base, settings.which)
    claim(run, settings, resume)
    model, objective, tokenizer, data = prepare_task(settings, base)
    settings = replace(
        settings,
        device=str(resolve_device(settings.device)),
        dtype=resolve_dtype(settings.dtype, resolve_device(settings.device)),
    )
    model = model.to(settings.device)
    dtype = getattr(torch, settings.dtype)
    newest = checkpoint.list_checkpoints(run)[-1:]
    if isinstance(objective, Preferences):
        objective.refer_to(model, dtype)
    if newest:
        stages = _same_data(read_ledger(newest[0]), data, newest[0])
        model, _ = load(newest[0], device=settings.device)
    else:
        stages = [*read_ledger(base), _begin(settings, base, model, objective, tokenizer, data)]
    torch.manual_seed(settings.seed)
    save = _choose_weights(settings, model, tokenizer, stages[-1])
    write_run(run, settings)
    torch.manual_seed(settings.seed)
    trainer = Trainer(
        run,
        model,
        tokenizer,
        objective,
        _in_steps(settings, objective),
        documents={"run": config.to_dict(settings), LEDGER: as_document(stages)},
        observers=observers,
        resume_from=newest[0] if newest else None,
        save=save,
    )
    try:
        result = trainer.train()
    finally:
        plot_metrics(run, stages[-1].before["unit"] if stages[-1].before else "nats")
    if result.finished:
        _finish(settings, result, objective, tokenizer)
    return result


def prepare_task(
    settings: FinetuneConfig, base: Path
) -> tuple[GPT, Task, Tokenizer, list[dict[str, object]]]:
    """Read the model and the examples; say what there is to learn.

    Returns:
        The model, the objective, the tokenizer, and what the ledger says of the data.

    Raises:
        ClearheadError: The checkpoint or the file of examples cannot be used.
    """
    model, tokenizer = checkpoint.load(base, dtype=torch.float32)
    if isinstance(settings, ClassifyConfig):
        return _classification(settings, model, tokenizer)
    if model.config.labels:
        raise ClearheadError(
            f"{base} tells {', '.join(model.config.labels)} apart and writes no text; start from "
            "the model that it was made from"
        )
    length, size, seed = model.config.context_length, settings.batch_size, settings.seed
    template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.chat_template = template

    def conversation(row: Row) -> Example:
        return encode_conversation(tokenizer, template, messages_of(row))

    def pair(row: Row) -> tuple[Example, Example]:
        return encode_pair(tokenizer, template, pair_of(row))

    task: Task
    if isinstance(settings, InstructConfig):
        train, held_out, data = _read(settings, conversation)
        task = answers = Answers(
            train,
            held_out,
            tokenizer,
            batch_size=size,
            context_length=length,
            packed=settings.packed,
            seed=seed,
        )
        _log.info(
            "%d conversations to learn from; padding is %.0f %% of the rows%s",
            len(train),
            100 * answers.padding,
            _left_out(answers.n_cut, "cut to the context", answers.n_left_out),
        )
    elif isinstance(settings, PreferConfig):
        train_pairs, held_pairs, data = _read(settings, pair)
        task = preferences = Preferences(
            train_pairs,
            held_pairs,
            tokenizer,
            loss=settings.loss,
            batch_size=size,
            context_length=length,
            seed=seed,
        )
        words = _left_out(0, "", preferences.n_left_out)
        _log.info("%d pairs to learn from%s", len(train_pairs), words)
    else:
        raise ClearheadError(f"{type(settings).__name__} says of no kind what there is to learn")
    return model, task, tokenizer, data


def _classification(
    settings: ClassifyConfig, model: GPT, tokenizer: Tokenizer
) -> tuple[GPT, Task, Tokenizer, list[dict[str, object]]]:
    """Give the model a head for the labels, and write down what is kept for a test."""
    if settings.val_data is not None:
        raise ClearheadError("a classifier's texts are divided by label; leave val_data out")
    found = read_labelled(settings.data, tokenizer, settings.options())
    _tell_skipped(found)
    model, task = build_classification(
        model,
        tokenizer,
        found.rows,
        settings.options(),
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    if settings.out.exists():
        save_texts(settings.out / "test.jsonl", task.parts.test)
    return model, task, tokenizer, [_described(found)]


def _choose_weights(
    settings: FinetuneConfig, model: GPT, tokenizer: Tokenizer, stage: Stage
) -> Callable[..., None]:
    """Leave to be learnt what is to be learnt, and return how that is saved.

    A classifier's adapter belongs to the model with its fresh head, which is kept in the run.
    """
    adapter = settings.adapter()
    labelled = settings.out / "base"
    if adapter is not None and model.config.labels and not labelled.exists():
        checkpoint.save(labelled, model, tokenizer)
    if adapter is not None and lora_config(model) is None:
        add_lora(model, adapter)
    freeze(model, settings.freeze_to)
    if adapter is None or stage.started_from is None:
        return checkpoint.save
    model.head.weight.requires_grad_(bool(model.config.labels))
    learnt = sum(one.numel() for one in model.parameters() if one.requires_grad)
    _log.info("%s of %s weights are learnt", f"{learnt:,}", f"{model.n_parameters():,}")
    base = labelled if model.config.labels else Path(stage.started_from["path"])
    return partial(save_adapter, base=base)


def freeze(model: GPT, layers: int) -> None:
    """Leave a model's embeddings and first blocks as they are; 0 freezes nothing.

    Raises:
        ClearheadError: The model has not so many blocks.
    """
    if layers > len(model.blocks):
        raise ClearheadError(f"freeze_to is {layers}; the model has {len(model.blocks)} blocks")
    if layers:
        frozen = [model.token_embedding, model.position_embedding, *model.blocks[:layers]]
        for module in frozen:
            module.requires_grad_(False)


def _check_given(settings: FinetuneConfig) -> None:
    if settings.base == Path():
        raise ClearheadError("which model to start from is not said; give its folder")
    if settings.data == Path():
        raise ClearheadError("what to learn from is not said; give --data FILE")


def _read(
    settings: FinetuneConfig, parse: Callable[[Row], T]
) -> tuple[list[T], list[T], list[dict[str, object]]]:
    """Return the examples to train on, those held out, and what the ledger says of them."""
    found = read_examples(settings.data, parse, skip_bad=settings.skip_bad)
    sources = [found]
    if settings.val_data is not None:
        held_out = read_examples(settings.val_data, parse, skip_bad=settings.skip_bad)
        sources.append(held_out)
        train, rest = found.rows, held_out.rows
    else:
        if len(found.rows) < 2:
            raise ClearheadError(f"{settings.data} has one row; one more is needed to hold out")
        order = np.random.Generator(np.random.Philox(settings.seed)).permutation(len(found.rows))
        count = min(len(order) - 1, max(1, round(settings.val_fraction * len(order))))
        rest = [found.rows[at] for at in sorted(order[:count])]
        train = [found.rows[at] for at in sorted(order[count:])]
    for source in sources:
        _tell_skipped(source)
    return train, rest, [_described(source) for source in sources]


def _tell_skipped(source: Examples[T]) -> None:
    if source.n_skipped:
        _log.info("%d bad rows of %s left out", source.n_skipped, source.path)


def _described(source: Examples[T]) -> dict[str, object]:
    return {
        "name": source.path.name,
        "sha256": source.sha256,
        "rows": len(source.rows),
        "skipped": source.n_skipped,
    }


def _left_out(n_cut: int, how: str, n_left_out: int) -> str:
    cut = f"; {n_cut} {how}" if n_cut else ""
    return cut + (f"; {n_left_out} left out, as they do not fit" if n_left_out else "")


def _in_steps(settings: FinetuneConfig, task: Task) -> FinetuneConfig:
    """Return the settings with the epochs told in steps."""
    if settings.minutes is not None or settings.steps is not None:
        return settings
    steps = math.ceil((settings.epochs or _EPOCHS) * task.steps_per_epoch)
    return replace(settings, epochs=None, steps=steps)


def _same_data(stages: list[Stage], data: list[dict[str, object]], newest: Path) -> list[Stage]:
    """Return the stages that a run noted, if its data is what it was."""
    if not stages or stages[-1].data != data:
        raise ClearheadError(
            f"{newest} was trained on other examples than these; give the same file, or begin "
            "another run"
        )
    return stages


def _begin(
    settings: FinetuneConfig,
    base: Path,
    model: GPT,
    task: Task,
    tokenizer: Tokenizer,
    data: list[dict[str, object]],
) -> Stage:
    dtype = getattr(torch, settings.dtype)
    return Stage(
        kind=type(settings).__name__.removesuffix("Config").lower(),
        started_from=origin(base),
        data=data,
        config=config.to_dict(settings),
        before=measured(task.evaluate(model, dtype)),
        text_before=text_loss(model, tokenizer, settings.plain_text, dtype),
    )


def _finish(
    settings: FinetuneConfig, result: TrainingResult, task: Task, tokenizer: Tokenizer
) -> None:
    """Note in the newest and the best checkpoint how the stage ended there."""
    dtype = getattr(torch, settings.dtype)
    best = checkpoint.resolve(settings.out, "best")
    for folder in dict.fromkeys([result.checkpoint, best]):
        model, _ = load(folder, device=settings.device)
        text = text_loss(model, tokenizer, settings.plain_text, dtype)
        step = checkpoint.step_of(folder) or 0
        finish(folder, task.evaluate(model, dtype), text, step)
