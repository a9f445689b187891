"""The formats of source files: text, JSON lines and Parquet, plain or compressed, as streams."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import zstandard

from clearhead.errors import ClearheadError

LINE_CHARS = 64 << 20
"""The longest line of a JSON lines file: a line is in memory whole."""

_BLOCK = 1 << 20
# One zstd block of 4 bytes may unfold to 128 KiB; this little at a time keeps a bomb below 64 MiB.
_ZSTD_INPUT = 2048
_SNIFF = 8192

Advance = Callable[[int], None]
"""Takes the bytes of the file on the disk that are read so far."""


def check_encoding(encoding: str) -> str:
    """Return the codec's own name; UTF-8 becomes the variant that drops a byte order mark.

    Raises:
        ClearheadError: There is no such text encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        " ".encode(name)  # bytes-to-bytes codecs such as hex are found, but are no text encodings
    except (LookupError, ValueError) as error:
        raise ClearheadError(
            f"unknown text encoding '{encoding}': give one that Python knows, such as utf-8, "
            "latin-1, cp1252 or utf-16"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def text_blocks(path: Path, encoding: str, advance: Advance) -> Iterator[str]:
    """Stream a text file, decompressed if its name ends in .gz or .zst.

    Raises:
        ClearheadError: It looks binary, is damaged, or is not in that encoding (the message has
            the byte offset, counted in the decompressed content).
    """
    codec = check_encoding(encoding)
    decoder = codecs.getincrementaldecoder(codec)("strict")
    fed = 0
    for block in _byte_blocks(path, advance):
        if fed == 0 and b"\0" in block[:_SNIFF] and not codec.startswith(("utf-16", "utf-32")):
            raise ClearheadError(
                f"{path}: looks binary (a zero byte at offset {block.index(0)}); give a text file, "
                "or --encoding utf-16 if it is one in UTF-16"
            )
        fed += len(block)
        yield _decode(decoder, block, fed, path, encoding)
    yield _decode(decoder, b"", fed, path, encoding, final=True)


def jsonl_texts(path: Path, encoding: str, field: str, advance: Advance) -> Iterator[str]:
    """Stream the texts of a JSON lines file: one object a line, its text under `field`.

    Raises:
        ClearheadError: A line is too long, no JSON object, or has no text under `field`; the
            message has the line's number.
    """
    for number, line in enumerate(_lines(text_blocks(path, encoding, advance), path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ClearheadError(f"{where}: not valid JSON ({reason}); mend the line") from error
        if not isinstance(row, dict):
            raise ClearheadError(f"{where}: not a JSON object with a field '{field}'")
        yield _checked_text(row.get(field), field, where)


def parquet_texts(path: Path, field: str, advance: Advance) -> Iterator[str]:
    """Stream the cells of a Parquet file's column `field`.

    Raises:
        ClearheadError: pyarrow is missing, the file is damaged or lacks the column, or a cell is
            no text; the message has the row's number.
    """
    if find_spec("pyarrow") is None:
        raise ClearheadError(f"{path}: to read Parquet do: pip install 'clearhead[parquet]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            if field not in file.schema_arrow.names:
                raise ClearheadError(
                    f"{path}: no column '{field}'; it has: {', '.join(file.schema_arrow.names)}"
                )
            rows = max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(batch_size=16, columns=[field], use_threads=False):
                for cell in batch.column(0):
                    number += 1
                    yield _checked_text(cell.as_py(), field, f"{path}, row {number}")
                advance(path.stat().st_size * number // rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ClearheadError(f"{path}: cannot be read as Parquet ({reason})") from error


def _checked_text(value: object, field: str, where: str) -> str:
    if value is None:
        raise ClearheadError(f"{where}: no text under '{field}'; name the right field")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise ClearheadError(f"{where}: '{field}' is {kind}, not text; name the right field")
    # JSON can spell half of a surrogate pair, which no encoding takes: U+FFFD, as tiktoken does.
    if value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lines(blocks: Iterator[str], path: Path) -> Iterator[str]:
    """Split a stream at newlines (and only at those, as the format wants)."""
    parts: list[str] = []
    size = 0
    number = 1
    for block in blocks:
        head, *tail = block.split("\n")
        parts.append(head)
        size += len(head)
        if size > LINE_CHARS:
            raise ClearheadError(
                f"{path}, line {number}: longer than {LINE_CHARS >> 20} Mi characters; "
                "split the document, or give it as a .txt file"
            )
        if tail:
            yield "".join(parts)
            yield from tail[:-1]
            number += len(tail)
            parts, size = [tail[-1]], len(tail[-1])
    if size:
        yield "".join(parts)


def _decode(
    decoder: codecs.IncrementalDecoder,
    block: bytes,
    fed: int,
    path: Path,
    encoding: str,
    final: bool = False,
) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeError as error:
        # What the decoder still held from the block before is at the front of error.object.
        offset = fed - len(block)
        if isinstance(error, UnicodeDecodeError):
            offset = fed - len(error.object) + error.start
        raise ClearheadError(
            f"{path}: not {encoding} at byte offset {offset} ({getattr(error, 'reason', error)}); "
            "give its encoding with --encoding"
        ) from error


def _byte_blocks(path: Path, advance: Advance) -> Iterator[bytes]:
    """Stream the file's content in blocks of about 1 MiB, decompressed."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    blocks: Iterator[bytes] = iter(lambda: unzipped.read(_BLOCK), b"")
                    for block in blocks:
                        yield block
                        advance(raw.tell())
            else:
                plain = iter(lambda: raw.read(_BLOCK), b"")
                for block in _zstd_blocks(raw) if suffix == ".zst" else plain:
                    yield block
                    advance(raw.tell())
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        kind = {".gz": "gzip", ".zst": "zstandard"}.get(suffix, suffix)
        raise ClearheadError(
            f"{path}: damaged or cut short as a {kind} file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise ClearheadError(f"{path}: cannot be read ({error.strerror or error})") from error


def _zstd_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Decompress frame by frame: the library's own reader takes a cut-short file for a whole one.

    Raises:
        EOFError: The last frame is not whole.
    """
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    collected = bytearray()
    while data := raw.read(_ZSTD_INPUT):
        while data:
            frame = frame or decompressor.decompressobj()
            collected += frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
        if len(collected) >= _BLOCK:
            yield bytes(collected)
            collected.clear()
    if frame is not None:
        raise EOFError("the last frame is not whole")
    yield bytes(collected)
