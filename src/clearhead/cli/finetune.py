"""`clearhead finetune …`: from a trained model to one that answers, prefers or classifies."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.text import Text

from clearhead import checkpoint
from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.cli.stages import change
from clearhead.cli.tensorboard import TensorBoard
from clearhead.cli.watch import Watch
from clearhead.data import IGNORED
from clearhead.recipes.finetune import fine_tune, prepare_task
from clearhead.recipes.finetune_config import (
    ClassifyConfig,
    FinetuneConfig,
    InstructConfig,
    PreferConfig,
)
from clearhead.recipes.ledger import read_ledger
from clearhead.recipes.run_folder import load_settings
from clearhead.tokenizer import Tokenizer
from clearhead.train import TrainingResult

_INTERRUPTED = 130
S = TypeVar("S", bound=FinetuneConfig)


@dataclass(frozen=True)
class _First:
    """What decides the other options' defaults."""

    resume: Flag = False
    out: Path | None = None


@dataclass(frozen=True)
class _Run:
    """How to run, whatever is learnt."""

    resume: Flag = False
    """Go on with the run in --out, with its own settings; begin it if there is none yet."""
    show_batch: Flag = False
    """Print the first batch, what is learnt of it in colour, and stop."""
    tensorboard: Flag = False
    """Write the curves for TensorBoard too, into OUT/tensorboard."""
    json: Flag = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class InstructArguments(_Run):
    """Teach a model to answer.

    The file holds rows of instruction, input (may be left out) and output, or of chat messages.
    Only the answers are learnt.
    """

    settings: Annotated[InstructConfig, tyro.conf.arg(name="")] = field(
        default_factory=InstructConfig, metadata={"flat": True}
    )


@dataclass(frozen=True)
class PreferArguments(_Run):
    """Teach a model which of two answers is better.

    The file holds rows of prompt (or instruction and input), chosen and rejected.
    """

    settings: Annotated[PreferConfig, tyro.conf.arg(name="")] = field(
        default_factory=PreferConfig, metadata={"flat": True}
    )


@dataclass(frozen=True)
class ClassifyArguments(_Run):
    """Teach a model to tell texts apart.

    The file holds rows of a text and a label. Some of them are kept for a test, in OUT/test.jsonl.
    """

    settings: Annotated[ClassifyConfig, tyro.conf.arg(name="")] = field(
        default_factory=ClassifyConfig, metadata={"flat": True}
    )


def instruct(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    settings = _defaults(InstructConfig, arguments, prog)
    return _run(parse(InstructArguments, arguments, prog, InstructArguments(settings=settings)))


def prefer(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    settings = _defaults(PreferConfig, arguments, prog)
    return _run(parse(PreferArguments, arguments, prog, PreferArguments(settings=settings)))


def classify(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    settings = _defaults(ClassifyConfig, arguments, prog)
    return _run(parse(ClassifyArguments, arguments, prog, ClassifyArguments(settings=settings)))


def _defaults(kind: type[S], arguments: Sequence[str], prog: str) -> S:
    """Return the settings that the options are laid over: those of the run to go on with."""
    first, _ = tyro.cli(_First, args=arguments, prog=prog, return_unknown_args=True, add_help=False)
    out = first.out or kind().out
    if first.resume and (out / "config.toml").exists():
        return replace(load_settings(kind, out), out=out)
    return kind()


def _run(parsed: ClassifyArguments | InstructArguments | PreferArguments) -> int:
    settings: FinetuneConfig = parsed.settings
    if parsed.show_batch:
        return _show_batch(settings)
    console = show.progress()
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(console))
        stack.enter_context(show.notes(console))
        observers: list[Any] = [watch]
        if parsed.tensorboard:
            observers.append(stack.enter_context(TensorBoard(settings.out / "tensorboard")))
        try:
            result = fine_tune(settings, resume=parsed.resume, observers=observers)
        except KeyboardInterrupt:
            watch.close()
            if (settings.out / "checkpoints").exists():
                show.line(console, f"interrupted; go on with: {_go_on(settings.out)}")
                return _INTERRUPTED
            raise
    if not result.finished:
        show.line(console, f"stopped at step {result.step}, saved in {result.checkpoint}")
        show.line(console, f"go on with: {_go_on(settings.out)}")
    report = _report(settings.out, result)
    if parsed.json:
        show.as_json(report)
    else:
        _show(report)
    return 0 if result.finished else _INTERRUPTED


def _go_on(out: Path) -> str:
    verb = sys.argv[1:3] if sys.argv[1:2] == ["finetune"] else ["finetune", "instruct"]
    return shlex.join(["clearhead", *verb, "--out", str(out), "--resume"])


def _show_batch(settings: FinetuneConfig) -> int:
    """Print the first batch as text, with what is learnt in colour."""
    console = show.progress()
    with show.notes(console):
        base = checkpoint.resolve(settings.base, settings.which)
        _, task, tokenizer, _ = prepare_task(settings, base)
    rows = task.at(0)
    shown = show.result()
    flat = zip(rows.inputs.flatten(0, -2), rows.targets.flatten(0, -2), strict=True)
    for number, (inputs, targets) in enumerate(flat, start=1):
        shown.print(Text(f"row {number}", style="bold"))
        shown.print(_coloured(tokenizer, inputs.tolist(), targets.tolist()), soft_wrap=True)
    learnt = int((rows.targets != IGNORED).sum())
    shown.print(
        Text.assemble(
            ("green", "green"), f" is learnt: {learnt:,} of {rows.inputs.numel():,} positions"
        )
    )
    return 0


def _coloured(tokenizer: Tokenizer, inputs: list[int], targets: list[int]) -> Text:
    """Return a row's text; each token that is a target is green, padding is left out."""
    whole = Text()
    while inputs and targets[-1] == IGNORED and inputs[-1] == tokenizer.end_of_text:
        inputs, targets = inputs[:-1], targets[:-1]
    start = 0
    tokens = [*inputs, targets[-1]] if targets and targets[-1] != IGNORED else inputs
    learnt = [False, *(target != IGNORED for target in targets)][: len(tokens)]
    for at in range(1, len(tokens) + 1):
        if at == len(tokens) or learnt[at] != learnt[start]:
            piece = show.visible(tokenizer.decode(tokens[start:at]))
            whole.append(piece, style="green" if learnt[start] else "")
            start = at
    return whole


def _report(run: Path, result: TrainingResult) -> dict[str, Any]:
    """Gather what there is to say of the run."""
    stages = read_ledger(result.checkpoint)
    last = stages[-1] if stages else None
    return {
        "run": str(run),
        "checkpoint": str(result.checkpoint),
        "step": result.step,
        "finished": result.finished,
        "before": last.before if last else None,
        "after": last.after if last else None,
        "text_before": last.text_before if last else None,
        "text_after": last.text_after if last else None,
        "best_step": result.best_step,
        "best_loss": result.best_loss,
        "loss_plot": str(run / "loss.png"),
        "metrics": str(run / "metrics.jsonl"),
    }


def _show(report: dict[str, Any]) -> None:
    best = None
    if report["best_step"] is not None:
        best = f"{report['best_loss']:.4f} at step {report['best_step']}"
    show.facts(
        {
            "held out": change(report["before"], report["after"]),
            "plain text": change(report["text_before"], report["text_after"]),
            "best": best,
            "checkpoint": report["checkpoint"],
            "loss plot": report["loss_plot"],
            "metrics": report["metrics"],
        }
    )
