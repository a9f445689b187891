"""`clearhead download`: a model's files from where they were published."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

from rich.console import Console
from tyro.conf import Positional, arg

from clearhead.checkpoint.download import Downloaded
from clearhead.checkpoint.download import download as download_files
from clearhead.cli import show
from clearhead.cli.bytes_bar import BytesBar
from clearhead.cli.parse import Flag, parse


@dataclass(frozen=True)
class Arguments:
    """Fetch a model's files as they were published.

    Broken off or killed, the same command goes on where it was. HF_TOKEN, where it is set, opens
    models of the hub that ask for consent.
    """

    name: Positional[str]
    """gpt2, gpt2-medium, distilgpt2, …, the hub's owner/name, or OpenAI's 124M to 1558M."""
    source: Annotated[str | None, arg(name="from")] = None
    """openai, huggingface, or an address, of a folder if it ends in a slash; else by the name."""
    out: Path | None = None
    """The folder to make; by default one called as the model."""
    mirror: str | None = None
    """The address that stands for the source's own host."""
    sha256: str | None = None
    """What the one file should have whose address --from gives."""
    json: Flag = False
    """Print the result as one JSON object."""


def download(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    with Bars(show.progress()) as bars:
        done = download_files(
            parsed.name,
            parsed.out,
            source=parsed.source,
            mirror=parsed.mirror,
            sha256=parsed.sha256,
            progress=bars,
        )
    if parsed.json:
        files = {name: asdict(record) for name, record in done.files.items()}
        show.as_json(
            {
                "folder": str(done.folder),
                "from": done.source,
                "files": files,
                "fetched": done.fetched,
            }
        )
    else:
        _show(done)
    return 0


class Bars:
    """Shows one bar after another, each for one file."""

    def __init__(self, console: Console) -> None:
        self._console, self._name = console, ""
        self._bar: BytesBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Show how far a file is."""
        if name != self._name or self._bar is None:
            self.__exit__()
            self._name, self._bar = name, BytesBar(self._console, name).__enter__()
        self._bar(done, done if total is None else total)


def _show(done: Downloaded) -> None:
    rows = [
        (name, record.bytes, record.sha256, "fetched" if name in done.fetched else "was there")
        for name, record in done.files.items()
    ]
    show.table("", ("file", "bytes", "SHA-256", ""), rows)
    show.facts(
        {
            "folder": done.folder,
            "from": done.source,
            "in all": show.size(sum(record.bytes for record in done.files.values())),
            "next": f"clearhead import {done.folder} OUT",
        }
    )
