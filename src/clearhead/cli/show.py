"""What the verbs show: results on standard output, everything else on standard error."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from clearhead.errors import ClearheadError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def result() -> Console:
    """Return the console for what was asked for: standard output."""
    return Console(highlight=False)


def progress() -> Console:
    """Return the console for all that is told on the way: standard error."""
    return Console(stderr=True, highlight=False)


def line(console: Console, words: str, style: str = "") -> None:
    """Print one line as it is: never wrapped, no markup read in it."""
    console.print(Text(visible(words), style=style), soft_wrap=True)


def error(message: str) -> None:
    """Tell a mistake in one line on standard error."""
    console = progress()
    told = Text.assemble(("error: ", "bold red"), visible(" ".join(message.split("\n"))))
    console.print(told, soft_wrap=True)


def as_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object, in one line, on standard output."""
    print(json.dumps(values, allow_nan=False, default=str))


def text(piece: str) -> None:
    """Print a model's text on standard output at once; a terminal is not steered by it."""
    console = result()
    print(visible(piece) if console.is_terminal else piece, end="", flush=True)


def facts(pairs: Mapping[str, object]) -> None:
    """Print names and values in two columns; what is None is left out, and no value is cut."""
    console = result()
    known = {name: value for name, value in pairs.items() if value is not None}
    width = max(len(name) for name in known)
    for name, value in known.items():
        pair = Text.assemble((f"{name:<{width}}  ", "bold cyan"), visible(str(value)))
        console.print(pair, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, its title first; numbers stand on the right, long texts are folded."""
    shown = Table(box=None)
    for index, name in enumerate(columns):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        justify: Any = "right" if numbers else "left"
        shown.add_column(name, justify=justify, overflow="fold", header_style="bold cyan")
    for row in rows:
        shown.add_row(*(Text(visible(_cell(value))) for value in row))
    console = result()
    if title:
        console.print(Text(f"\n{title}", style="bold"))
    console.print(shown)


def verbs(usage: str, purpose: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Print the help of the command itself."""
    console = result()
    line(console, f"usage: {usage}\n\n{purpose}\n")
    for name, given, does in rows:
        console.print(Text.assemble((f"  {name} ", "bold"), given), soft_wrap=True)
        line(console, f"      {does}", "dim")
    line(console, "\nSOURCE is pydocs, a .txt, .md, .jsonl or .parquet file, or a folder of such.")


@contextmanager
def notes(console: Console) -> Iterator[None]:
    """Show on `console` what the library logs meanwhile."""
    logger, handler = logging.getLogger("clearhead"), _Notes(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Notes(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line(self._console, record.getMessage(), "dim")


def visible(words: str) -> str:
    """Return text with its control characters, but line ends and tabs, written out.

    What a model or a file says could otherwise steer the terminal.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", words)


def size(n_bytes: float) -> str:
    """Return a number of bytes in the unit that fits it."""
    return decimal(int(n_bytes))


def one_of(names: Sequence[str], given: Mapping[str, object]) -> None:
    """Refuse two options that exclude each other."""
    both = [name for name in names if given.get(name) is not None]
    if len(both) > 1:
        raise ClearheadError(f"give {' or '.join(f'--{name}' for name in both)}, not both")


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
