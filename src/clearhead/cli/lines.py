"""What a person types, or a pipe brings: a message at a time."""

import select
import sys
from collections.abc import Callable
from io import TextIOWrapper

from clearhead.cli import show

PROMPT, MORE = "> ", ". "
_FENCE = '"""'
_PASTED = 0.02  # seconds within which the next line of a pasted text is there


class Lines:
    r"""Reads messages from standard input.

    A line is a message. One that ends with a backslash goes on in the next line; one that begins
    with three quotation marks goes on until a line that ends with them. On a terminal a pasted text
    is one message, whatever its lines, and lines can be edited and had again by the arrow keys.

    Attributes:
        interactive: Whether a person types; a pipe is shown no prompt.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._on_screen = self.interactive and sys.stdout.isatty()
        self._pastes_whole = self._on_screen and _edit_lines()
        if isinstance(sys.stdin, TextIOWrapper):  # what is no text is told of, where it is used
            sys.stdin.reconfigure(errors="surrogateescape")

    def message(self) -> str | None:
        """Return the next message; None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C, where no message was begun; one that was is forgotten.
        """
        while True:
            lines: list[str] = []
            try:
                return self._message(lines)
            except KeyboardInterrupt:
                self._end_line()
                if not lines:
                    raise

    def _message(self, lines: list[str]) -> str | None:
        first = self._line(PROMPT)
        if first is None:
            return None
        fenced = first.startswith(_FENCE)
        lines.append(first.removeprefix(_FENCE))
        goes_on: Callable[[str], bool] = _is_open if fenced else _continues
        while goes_on(lines[-1]):
            if not fenced:
                lines[-1] = lines[-1].removesuffix("\\")
            if (line := self._line(MORE)) is None:
                break
            lines.append(line)
        said = "\n".join(lines)
        return said.removesuffix(_FENCE).strip("\n") if fenced else said

    def _line(self, prompt: str) -> str | None:
        """Return a line without its end, or what was pasted at once; None at the end."""
        if not self.interactive:
            line = sys.stdin.readline()
            return line.removesuffix("\n") if line else None
        if not self._on_screen:  # input would write the prompt among the answers
            print(prompt, end="", file=sys.stderr, flush=True)
        lines: list[str] = []
        try:
            lines.append(input(prompt if self._on_screen else ""))
            while not self._pastes_whole and _is_waiting():
                lines.append(input())
        except EOFError:
            self._end_line()
        return "\n".join(lines) if lines else None

    def _end_line(self) -> None:
        if self.interactive:
            show.line(show.progress(), "")


def _is_open(line: str) -> bool:
    return not line.endswith(_FENCE)


def _continues(line: str) -> bool:
    return line.endswith("\\")


def _edit_lines() -> bool:
    """Let lines be edited, where that can be; say whether a pasted text comes as one line then."""
    try:
        import readline
    except ImportError:  # as on Windows
        return False
    if "libedit" in (readline.__doc__ or ""):
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    return True


def _is_waiting() -> bool:
    """Say whether another line is there already, faster than anybody types."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTED)[0])
    except OSError:  # Windows knows this of sockets only
        return False
