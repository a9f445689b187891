"""`clearhead train`: trains, shows how it goes, and what came of it."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.cli.tensorboard import TensorBoard
from clearhead.cli.watch import Watch
from clearhead.engine import SamplingConfig
from clearhead.recipes.generate import generate
from clearhead.recipes.load import load
from clearhead.recipes.pretrain import PretrainConfig, load_config, pretrain
from clearhead.train import TrainingResult

_SAMPLE = SamplingConfig(temperature=0.8, max_new_tokens=80, seed=0)
_INTERRUPTED = 130


@dataclass(frozen=True)
class _First:
    """What decides the other options' defaults."""

    preset: str = "nano"
    config: Path | None = None
    resume: Flag = False
    out: Path | None = None
    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Arguments:
    """Train a GPT from scratch, or go on with a run.

    A preset gives the defaults, a TOML file is laid over it, and options over both.
    """

    preset: str = "nano"
    """The recipe to start from: nano, gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m."""
    config: Path | None = None
    """A TOML file with any of the settings below."""
    resume: Flag = False
    """Go on with the run in --out, with its own settings; begin it if there is none yet."""
    tensorboard: Flag = False
    """Write the curves for TensorBoard too, into OUT/tensorboard."""
    json: Flag = False
    """Print the result as one JSON object."""
    settings: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig, metadata={"flat": True}
    )


def train(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog, Arguments(settings=_defaults(arguments, prog)))
    settings, run = parsed.settings, parsed.settings.out
    console = show.progress()
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(console))
        stack.enter_context(show.notes(console))
        observers: list[Any] = [watch]
        if parsed.tensorboard:
            observers.append(stack.enter_context(TensorBoard(run / "tensorboard")))
        try:
            result = pretrain(
                settings,
                resume=parsed.resume,
                observers=observers,
                on_prepare=watch.on_prepare,
            )
        except KeyboardInterrupt:
            watch.close()
            if (run / "config.toml").exists():
                show.line(console, f"interrupted; go on with: {_go_on(parsed)}")
                return _INTERRUPTED
            raise
    if not result.finished:
        show.line(console, f"stopped at step {result.step}, saved in {result.checkpoint}")
        show.line(console, f"go on with: {_go_on(parsed)}")
    report = _report(run, result, watch)
    if parsed.json:
        show.as_json(report)
    else:
        _show(report)
    return 0 if result.finished else _INTERRUPTED


def _defaults(arguments: Sequence[str], prog: str) -> PretrainConfig:
    """Return the settings that the options are laid over."""
    first, _ = tyro.cli(_First, args=arguments, prog=prog, return_unknown_args=True, add_help=False)
    show.one_of(("steps", "minutes"), vars(first))
    settings = load_config(first.config, first.preset)
    run = first.out or settings.out
    if first.resume:
        # A run's own config counts; but the run lies where it is now.
        settings = replace(load_config(first.config, first.preset, run), out=run)
    if first.steps is not None:
        return replace(settings, minutes=None)
    return settings if first.minutes is None else replace(settings, steps=None)


def _go_on(parsed: Arguments) -> str:
    """Return the command that goes on with the run, such that this shell finds it."""
    called = sys.argv[0]
    on_path = shutil.which("clearhead") or Path(called).name != "clearhead"
    program = "clearhead" if on_path else called
    command = [program, "train", "--out", str(parsed.settings.out), "--resume"]
    return shlex.join(command + ["--tensorboard"] * parsed.tensorboard)


def _report(run: Path, result: TrainingResult, watch: Watch) -> dict[str, Any]:
    """Gather what there is to say of the run."""
    measured = result.evaluation
    return {
        "run": str(run),
        "checkpoint": str(result.checkpoint),
        "step": result.step,
        "finished": result.finished,
        "val_loss": measured.loss if measured else None,
        "bits_per_byte": measured.bits_per_byte if measured else None,
        "best_step": result.best_step,
        "best_loss": result.best_loss,
        "parameters": watch.n_parameters,
        "loss_plot": str(run / "loss.png"),
        "metrics": str(run / "metrics.jsonl"),
        "sample": _sample(run, result) if result.finished else None,
    }


def _sample(run: Path, result: TrainingResult) -> str:
    """Return what the run's best model, or else its newest, begins a document with."""
    model, tokenizer = load(run, which="newest" if result.best_step is None else "best")
    return generate(model, tokenizer, "", sampling=_SAMPLE)[0].text


def _show(report: dict[str, Any]) -> None:
    sample = report["sample"]
    if sample is not None:
        show.text(f"\n{sample}\n\n")
    measured, best = None, None
    if report["val_loss"] is not None:
        measured = (
            f"{report['bits_per_byte']:.4f} bits a byte, {report['val_loss']:.4f} nats a token"
        )
    if report["best_step"] is not None:
        best = f"{report['best_loss']:.4f} nats a token at step {report['best_step']}"
    show.facts(
        {
            "validation loss": measured,
            "best": best,
            "checkpoint": report["checkpoint"],
            "loss plot": report["loss_plot"],
            "metrics": report["metrics"],
        }
    )
