"""How far a stream of bytes is: a live bar on a terminal, a line now and then elsewhere."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clearhead.cli import show

LINES = 10
"""Lines that stand for a whole bar where there is no terminal."""


class BytesBar:
    """Shows (bytes done, bytes in all), with the speed and the time left."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(label, total=None)
        self._told = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is; called as often as one likes."""
        self._progress.update(self._task, completed=done, total=total)
        tenth = LINES * done // max(1, total)
        if not self._console.is_terminal and tenth != self._told:
            self._told = tenth
            text = f"{self._label}: {show.size(done)} of {show.size(total)}"
            show.line(self._console, text)
