"""How training goes, on standard error: a live bar on a terminal, lines now and then elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from clearhead.cli import show
from clearhead.cli.bytes_bar import LINES, BytesBar
from clearhead.train import Evaluated, Event, Saved, Started, Stepped


class Watch:
    """Shows a run of training: an observer of its events, and of the text's preparation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bytes: BytesBar | None = None
        self._steps: Progress | None = None
        self._told: int | None = None
        self.n_parameters: int | None = None
        """How many weights the model has, once the run has begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live bar away; what is shown later stands below it."""
        if self._bytes is not None:
            self._bytes.__exit__()
        if self._steps is not None:
            self._steps.stop()
        self._bytes = self._steps = None

    def on_prepare(self, done: int, total: int) -> None:
        """Show how much of the text is prepared."""
        if self._bytes is None:
            self._bytes = BytesBar(self._console, "preparing text").__enter__()
        self._bytes(done, total)

    def __call__(self, event: Event) -> None:
        """Show an event of the run."""
        match event:
            case Started():
                self._start(event)
            case Stepped():
                self._step(event)
            case Evaluated():
                self._evaluated(event)
            case Saved():
                pass  # one comes with every evaluation, and the last is told at the end

    def _start(self, event: Started) -> None:
        self.close()
        self.n_parameters = event.n_parameters
        show.line(
            self._console,
            f"{event.n_parameters:,} parameters; {event.train_tokens:,} tokens to train on, "
            f"{event.held_out_tokens:,} held out; tokenizer {event.tokenizer}; "
            f"{event.dtype} on {event.device}"
            + (f"; going on at step {event.step}" if event.step else ""),
        )
        if self._console.is_terminal:
            columns = BarColumn(), TextColumn("{task.description}")
            self._steps = Progress(*columns, console=self._console)
            self._steps.add_task("the first step …", total=event.steps, completed=event.step)
            self._steps.start()

    def _step(self, event: Stepped) -> None:
        told = (
            f"step {event.step}/{'?' if event.steps is None else event.steps}, "
            f"loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tokens/s, "
            f"{_clock(event.seconds_left)} left"
        )
        if self._steps is not None:
            task = self._steps.task_ids[0]
            self._steps.update(task, completed=event.step, total=event.steps, description=told)
            return
        tenth = None if event.steps is None else LINES * event.step // event.steps
        if tenth != self._told or event.step == 1:
            self._told = tenth
            show.line(self._console, told)

    def _evaluated(self, event: Evaluated) -> None:
        show.line(
            self._console,
            f"step {event.step}: validation loss {event.evaluation}"
            + (" (best so far)" if event.is_best else ""),
            "bold green" if event.is_best else "",
        )


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
