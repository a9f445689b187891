"""`clearhead data prepare` and `clearhead data info`."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.bytes_bar import BytesBar
from clearhead.cli.parse import Flag, parse
from clearhead.data import Manifest, TokenDataset, describe
from clearhead.data import prepare as prepare_data
from clearhead.recipes.tokenize import train_tokenizer


@dataclass(frozen=True)
class PrepareArguments:
    """Turn text into a folder of token shards with a manifest.

    Killed, the same command goes on where it was.
    """

    sources: Positional[tuple[str, ...]]
    """pydocs, files (.txt, .md, .jsonl, .parquet) or folders of such."""
    out: Path
    """The folder to write: a new or empty one."""
    tokenizer: str
    """gpt2, char, bytes, bpe:SIZE, or a folder with a tokenizer.json."""
    processes: int | None = None
    """Processes to work on; by default one a core, at most 8."""
    encoding: str = "utf-8"
    """How the text files are encoded."""
    field: str = "text"
    """The field or column that holds the text, in JSON lines and Parquet."""
    json: Flag = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class InfoArguments:
    """Tell what a prepared folder holds."""

    directory: Positional[Path]
    """What `clearhead data prepare` wrote."""
    verify: Flag = False
    """Read every file and compare its checksum."""
    json: Flag = False
    """Print the result as one JSON object."""


def prepare(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(PrepareArguments, arguments, prog)
    console = show.progress()
    with show.notes(console):
        tokenizer = train_tokenizer(
            parsed.tokenizer, parsed.sources, encoding=parsed.encoding, field=parsed.field
        )
        began = time.perf_counter()
        with BytesBar(console, "preparing text") as bar:
            manifest = prepare_data(
                parsed.sources,
                parsed.out,
                tokenizer,
                processes=parsed.processes,
                encoding=parsed.encoding,
                field=parsed.field,
                progress=bar,
            )
        seconds = time.perf_counter() - began
    report = _report(parsed.out, manifest) | {"seconds": seconds}
    if parsed.json:
        show.as_json(report)
    else:
        read = sum(source.bytes for source in manifest.sources)
        _show(report, {"speed": f"{show.size(read / seconds)}/s ({seconds:.1f} s)"})
    return 0


def info(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(InfoArguments, arguments, prog)
    if parsed.verify:
        manifest = TokenDataset.open(parsed.directory, verify=True).manifest
    else:
        manifest = describe(parsed.directory)
    report = _report(parsed.directory, manifest) | {"verified": parsed.verify}
    if parsed.json:
        show.as_json(report)
        return 0
    _show(report, {"checksums": "all hold" if parsed.verify else None})
    show.table(
        "sources",
        ("name", "bytes"),
        [(source.name, source.bytes) for source in manifest.sources],
    )
    return 0


def _report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the manifest, and where it lies."""
    stored = sum(shard.tokens for shard in manifest.shards) * manifest.token_bytes
    return {"folder": str(folder), **asdict(manifest), "token_file_bytes": stored}


def _show(report: dict[str, Any], more: dict[str, object]) -> None:
    ratio = report["text_bytes"] / max(1, report["tokens"])
    show.facts(
        {
            "folder": report["folder"],
            "tokens": f"{report['tokens']:,} ({ratio:.3f} bytes of text a token)",
            "documents": f"{report['documents']:,}",
            "text": show.size(report["text_bytes"]),
            "shards": f"{len(report['shards'])} of {report['dtype']}, "
            f"{show.size(report['token_file_bytes'])}",
            "tokenizer": f"{report['tokenizer']} (vocabulary of {report['vocab_size']:,})",
            "sources": len(report["sources"]),
            **more,
        }
    )
