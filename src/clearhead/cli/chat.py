"""`clearhead chat`: talks with a model, in the terminal or through a pipe."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from tyro.conf import Positional

from clearhead import checkpoint
from clearhead.cli import show
from clearhead.cli.lines import Lines
from clearhead.cli.parse import Flag, parse, text
from clearhead.cli.sampling_flags import SamplingFlags
from clearhead.errors import ClearheadError, nearest
from clearhead.recipes.chat import Answer, Conversation
from clearhead.recipes.load import load
from clearhead.train.signals import StopRequest

_MISTAKE = 2


@dataclass(frozen=True)
class Arguments:
    """Talk with a model that was taught to answer.

    Each line is a question. /help, as a question, lists the commands.
    """

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    system: str = ""
    """What the model is told before all questions."""
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(
        default_factory=SamplingFlags, metadata={"flat": True}
    )
    best: Flag = False
    """Take the run's best checkpoint, not its newest."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print each answer as one JSON object, in a line."""


def chat(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    which: Literal["best", "newest"] = "best" if parsed.best else "newest"
    folder = checkpoint.resolve(parsed.directory, which)
    model, tokenizer = load(folder, device=parsed.device)
    conversation = Conversation(
        model,
        tokenizer,
        system=text(parsed.system, "--system"),
        sampling=parsed.sampling.config(),
        stop=parsed.sampling.stops(),
    )
    _introduce(folder, conversation)
    return Chat(conversation, Lines(), as_json=parsed.json).run()


def _introduce(folder: Path, conversation: Conversation) -> None:
    """Say which model it is, and what computes it."""
    console, engine = show.progress(), conversation.engine
    described = checkpoint.describe(folder)
    says = f"{folder}: {described.n_parameters:,} parameters ({described.dtype})"
    if engine.why is None:
        says += f", native kernels ({engine.backend})"
    show.line(console, says, "dim")
    if engine.why is not None:
        show.line(console, f"torch computes, not the native kernels: {engine.why}", "dim")


class _Command(NamedTuple):
    usage: str
    purpose: str
    run: Callable[[str], object]


class Chat:
    """A person's side of a conversation: questions and commands in, answers out."""

    def __init__(self, conversation: Conversation, lines: Lines, *, as_json: bool) -> None:
        """Take what to talk with, and where the questions come from."""
        self._conversation, self._lines, self._as_json = conversation, lines, as_json
        self._ends, self._status = False, 0
        self._commands = {
            "/help": _Command("", "list the commands", self._help),
            "/reset": _Command("", "forget all questions and answers", self._reset),
            "/undo": _Command("", "take the last question and its answer back", self._undo),
            "/retry": _Command("", "ask the last question again", self._retry),
            "/system": _Command(
                " TEXT",
                "tell the model this before all questions; nothing without TEXT",
                self._tell,
            ),
            "/save": _Command(" FILE", "write the conversation as JSON", self._save),
            "/quit": _Command("", "end", self._quit),
        }

    def run(self) -> int:
        """Talk until the end of the input; returns the exit status."""
        if self._lines.interactive:
            self._say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends")
        try:
            while not self._ends and (message := self._lines.message()) is not None:
                try:
                    self._take(text(message, "the question"))
                except ClearheadError as error:
                    show.error(str(error))
                    self._status = 0 if self._lines.interactive else _MISTAKE
        except KeyboardInterrupt:
            if not self._lines.interactive:
                raise
        return self._status

    def _take(self, message: str) -> None:
        """Do what a message says: it is a command, a question, or blank."""
        if message.startswith("/"):
            word, *rest = message.split(maxsplit=1)
            command = self._commands.get(word)
            if command is None:
                hint = nearest(word, self._commands)
                raise ClearheadError(f"there is no command {word!r}; {hint}")
            if rest and not command.usage:
                raise ClearheadError(
                    f"{word} takes nothing after it; put a blank before a question"
                )
            command.run("".join(rest).strip())
        elif message.strip():
            self._answer(partial(self._conversation.ask, message.strip()))

    def _answer(self, ask: Callable[..., Answer]) -> None:
        """Show an answer as it is made; where a person types, Ctrl-C ends the answer only."""
        on_text = None if self._as_json else show.text
        if not self._lines.interactive:
            self._show(ask(on_text=on_text))
            return
        with StopRequest((signal.SIGINT,)) as stop:
            try:
                answer = ask(on_text=on_text, cancelled=lambda: stop.requested)
            except KeyboardInterrupt:  # the second one, while the first is not heeded yet
                self._say("\nbroken off; the conversation is as it was")
            else:
                self._show(answer)

    def _show(self, answer: Answer) -> None:
        if self._as_json:
            show.as_json(_as_dict(answer))
        else:
            print(flush=True)
        self._say(_told(answer))

    def _say(self, words: str) -> None:
        show.line(show.progress(), words, "dim")

    def _help(self, _: str) -> None:
        for word, command in self._commands.items():
            self._say(f"{word + command.usage:<14}{command.purpose}")
        self._say("A blank before / makes a question of it. A line goes on after a \\ at its end;")
        self._say('several lines stand between """ and """.')

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._say("forgotten" + ("; the system message stays" if self._conversation.system else ""))

    def _undo(self, _: str) -> None:
        self._say(f"taken back: {_short(self._conversation.undo())}")

    def _retry(self, _: str) -> None:
        self._answer(self._conversation.retry)

    def _tell(self, words: str) -> None:
        self._conversation.system = words
        self._say("the model is told this before all questions" if words else "no system message")

    def _save(self, name: str) -> None:
        if not name:
            raise ClearheadError("/save needs a file's name, as in /save talk.json")
        try:
            path = Path(name).expanduser()
        except RuntimeError as error:
            raise ClearheadError(f"there is no home folder of {name!r}; name another") from error
        self._conversation.save(path)
        self._say(f"saved: {name}")

    def _quit(self, _: str) -> None:
        self._ends = True


_ENDS = {
    "stop": "ended by a stop",
    "length": "ended by --tokens",
    "context": "ended by the end of the context",
    "cancelled": "stopped; what is written stays (/undo takes it back)",
}


def _told(answer: Answer) -> str:
    """Say how an answer went."""
    said = f"{answer.n_tokens} tokens"
    if answer.tokens_per_second is not None:
        said += f", {answer.tokens_per_second:,.1f} tokens/s"
    if answer.seconds_to_first is not None:
        said += f", the first after {answer.seconds_to_first:.2f} s"
    said += f"; seed {answer.seed}; {_ENDS[answer.finish_reason]}"
    if answer.n_left_out:
        what = "exchange was" if answer.n_left_out == 1 else f"{answer.n_left_out} exchanges were"
        said += f"; the oldest {what} left out to make room"
    return said


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "text": answer.text,
        "tokens": answer.n_tokens,
        "finish_reason": answer.finish_reason,
        "stop": answer.stop,
        "seed": answer.seed,
        "prompt_tokens": len(answer.prompt_token_ids),
        "shared_tokens": answer.n_shared,
        "left_out_exchanges": answer.n_left_out,
        "seconds_to_first": answer.seconds_to_first,
        "seconds": answer.seconds,
        "tokens_per_second": answer.tokens_per_second,
    }


def _short(words: str) -> str:
    """Return the beginning of a text, in one line."""
    line = " ".join(words.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
