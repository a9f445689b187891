"""From sources to a folder of token shards: streamed, on all cores, resumable, reproducible."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from clearhead.data.manifest import (
    FORMAT,
    Manifest,
    Plan,
    SourceRecord,
    describe,
    is_prepared,
)
from clearhead.data.pieces import PIECE_CHARS, Piece
from clearhead.data.readers import check_encoding
from clearhead.data.sources import Sources, find_sources, iter_pieces
from clearhead.data.workers import Batch, Encoder, encode_all
from clearhead.data.writer import JOURNAL, Progress, Writer, read_journal, write_journal, writing
from clearhead.errors import ClearheadError
from clearhead.tokenizer import Tokenizer, save_tokenizer

SHARD_TOKENS = 100_000_000
SAVE_TOKENS = 16_000_000
"""Tokens between two notes in the journal: the most work that a kill can cost."""

MOST_PROCESSES = 8
"""The most processes taken unasked: each costs memory, and one reader feeds no more of them."""

_log = logging.getLogger(__name__)


def prepare(
    sources: Sequence[str | Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    processes: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    encoding: str = "utf-8",
    field: str = "text",
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the tokens of the sources into a folder of shards with a manifest and the tokenizer.

    The end-of-text token stands behind each document. The folder's bytes depend on the sources,
    the tokenizer, `shard_tokens`, `encoding` and `field` alone: not on `processes`, nor on how
    often the work was killed and gone on with. A folder that is already prepared from the same is
    returned as it is.

    Args:
        sources: The word `pydocs`, files, or folders; see `find_sources`.
        out: The folder to write: new, empty, or one that an earlier call left unfinished.
        tokenizer: Encodes the documents.
        processes: Processes to encode on; the usable cores by default, at most 8.
        shard_tokens: Tokens in each shard but the last.
        encoding: The encoding of text and JSON lines files.
        field: The field or column that holds the text, in JSON lines and Parquet.
        progress: Called with the bytes of the sources that are done, and those in all.

    Raises:
        ClearheadError: A source is unreadable, `out` holds something else, or the disk is full.
            What is written by then stays, and the same call goes on with it.
    """
    if shard_tokens < 1 or (processes is not None and processes < 1):
        raise ClearheadError("shard_tokens and processes must be at least 1")
    check_encoding(encoding)
    found = find_sources(sources)
    plan = _plan(found, tokenizer, shard_tokens, encoding, field)
    if is_prepared(out):
        manifest = describe(out)
        _check_same(manifest, plan, out)
        (out / JOURNAL).unlink(missing_ok=True)
        _log.info("%s is already prepared from the same sources", out)
        return manifest
    if found.ignored:
        _log.info("%d files of other kinds are left out", found.ignored)
    with writing(out):
        writer = Writer(out, plan, _begin(out, plan, tokenizer))
    _fill(writer, found, tokenizer, _processes(processes, found), progress or _silent)
    with writing(out):
        return writer.finish()


def _plan(
    found: Sources, tokenizer: Tokenizer, shard_tokens: int, encoding: str, field: str
) -> Plan:
    return Plan(
        format=FORMAT,
        dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        shard_tokens=shard_tokens,
        encoding=encoding,
        field=field,
        sources=tuple(SourceRecord(file.name, file.bytes, file.sha256()) for file in found.files),
    )


def _check_same(there: Plan, wanted: Plan, out: Path) -> None:
    for entry in dataclasses.fields(Plan):
        old, new = getattr(there, entry.name), getattr(wanted, entry.name)
        if old == new:
            continue
        if entry.name == "sources":
            pairs = [pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]]
            what = f"{pairs[0][1].name} changed" if pairs else "another number of files"
            what = f"other sources ({what})"
        else:
            what = f"another {entry.name} ({old}, now {new})"
        raise ClearheadError(
            f"{out}: was prepared with {what}; choose another --out, or remove that folder"
        )


def _begin(out: Path, plan: Plan, tokenizer: Tokenizer) -> Progress:
    """Make the folder ready, and return how far it already is."""
    if out.exists() and not out.is_dir():
        raise ClearheadError(f"{out}: is a file; choose another --out")
    journal = read_journal(out)
    if journal is not None and journal[1].batches:
        _check_same(journal[0], plan, out)
        _log.info("%s: going on behind token %d", out, journal[1].tokens)
        return journal[1]
    if journal is None and out.exists() and any(not _is_leftover(path) for path in out.iterdir()):
        raise ClearheadError(f"{out}: holds other files; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_journal(out, plan, Progress())
    save_tokenizer(tokenizer, out)
    return Progress()


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _fill(
    writer: Writer,
    found: Sources,
    tokenizer: Tokenizer,
    processes: int,
    report: Callable[[int, int], None],
) -> None:
    total, plan = found.bytes, writer.plan
    batches = _batches(found, plan.encoding, plan.field)
    # Reading again is far cheaper than encoding again, and needs no notes about formats.
    for batch in islice(batches, writer.progress.batches):
        report(batch.position, total)
    for batch, encoded in encode_all(batches, Encoder(tokenizer, plan.dtype), processes):
        with writing(writer.folder):
            writer.add(encoded)
            if writer.unsaved_tokens >= SAVE_TOKENS:
                writer.save()
        report(batch.position, total)
    if not writer.progress.tokens:
        names = ", ".join(file.name for file in found.files[:3])
        raise ClearheadError(f"{names}: no text, only white space; give a source with text")
    report(total, total)


def _batches(found: Sources, encoding: str, field: str) -> Iterator[Batch]:
    """Group pieces to about a Mi characters, so that small documents travel together."""
    position = size = 0

    def advance(done: int) -> None:
        nonlocal position
        position = done

    pieces: list[Piece] = []
    for piece in iter_pieces(found, encoding=encoding, field=field, advance=advance):
        pieces.append(piece)
        size += len(piece.text)
        if size >= PIECE_CHARS // 2:
            yield Batch(pieces, position)
            pieces, size = [], 0
    if pieces:
        yield Batch(pieces, position)


def _processes(asked: int | None, found: Sources) -> int:
    if asked is not None:
        return asked
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES, 1 + found.bytes // (2 * PIECE_CHARS))


def _silent(done: int, total: int) -> None:
    """Report nothing."""
