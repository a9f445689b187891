"""From what a person names as a source to a stream of documents."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clearhead.data.pieces import Piece, cut_text, split_documents, without_blank
from clearhead.data.pydocs import pydocs_documents, pydocs_files, pydocs_hash
from clearhead.data.readers import check_encoding, jsonl_texts, parquet_texts, text_blocks
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file

PYDOCS = "pydocs"
"""The word that names the corpus which every Python carries."""

_KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
_COMPRESSED = {".gz", ".zst"}
KNOWN_KINDS = ".txt, .md, .jsonl (each also .gz or .zst) or .parquet"


@dataclass(frozen=True)
class Document:
    """One document of a corpus, whole in memory."""

    text: str
    source: str
    """The name of the file that it came from."""


@dataclass(frozen=True)
class SourceFile:
    """One file to read, or the `pydocs` corpus."""

    name: str
    """What a manifest calls it: the file's name, below a folder source with the path in it."""
    path: Path
    kind: str
    """"text", "jsonl", "parquet" or "pydocs"."""
    bytes: int
    """Its size on the disk."""

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes in hexadecimal.

        Raises:
            ClearheadError: It cannot be read.
        """
        try:
            return pydocs_hash() if self.kind == PYDOCS else sha256_file(self.path)
        except OSError as error:
            raise ClearheadError(
                f"{self.path}: cannot be read ({error.strerror or error})"
            ) from error


@dataclass(frozen=True)
class Sources:
    """The files behind what a person named."""

    files: tuple[SourceFile, ...]
    ignored: int
    """Files in the folders that are of no known kind."""

    @property
    def bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(file.bytes for file in self.files)


def find_sources(sources: Sequence[str | Path]) -> Sources:
    """Find the files that the sources stand for, in a fixed order.

    Args:
        sources: The word `pydocs`, files, or folders (searched through, in order of the paths).

    Raises:
        ClearheadError: A source is missing, empty, of no known kind, or cannot be read.
    """
    files: list[SourceFile] = []
    ignored = 0
    for source in sources:
        path = Path(source)
        if source == PYDOCS:
            size = sum(file.stat().st_size for file in pydocs_files())
            files.append(SourceFile(PYDOCS, path, PYDOCS, size))
        elif path.is_dir():
            found, others = _files_below(path)
            files += found
            ignored += others
        else:
            files.append(_single_file(path))
    if not files:
        raise ClearheadError(f"no source: give '{PYDOCS}', a file ({KNOWN_KINDS}) or a folder")
    return Sources(tuple(files), ignored)


def iter_pieces(
    sources: Sources,
    *,
    encoding: str = "utf-8",
    field: str = "text",
    advance: Callable[[int], object] = int,
) -> Iterator[Piece]:
    """Stream the documents in pieces of at most 1 Mi characters, in bounded memory.

    Args:
        sources: What `find_sources` found.
        encoding: The encoding of text and JSON lines files.
        field: The field or column that holds the text, in JSON lines and Parquet.
        advance: Called with the bytes of the sources that are read so far.
    """
    base = 0
    for file in sources.files:

        def step(position: int, base: int = base) -> None:
            advance(base + position)

        yield from without_blank(_file_pieces(file, encoding, field, step))
        base += file.bytes
        advance(base)


def iter_documents(
    sources: Sequence[str | Path], *, encoding: str = "utf-8", field: str = "text"
) -> Iterator[Document]:
    """Stream the documents of the sources, each whole (`iter_pieces` bounds the memory).

    In text files documents are split at the literal `<|endoftext|>`; in JSON lines and Parquet
    each row is a document. Documents of nothing but white space are left out.

    Args:
        sources: The word `pydocs`, files, or folders.
        encoding: The encoding of text and JSON lines files.
        field: The field or column that holds the text, in JSON lines and Parquet.

    Raises:
        ClearheadError: A source is missing, empty, unreadable, binary, damaged or not in that
            encoding; the message says where.
    """
    check_encoding(encoding)
    found = find_sources(sources)
    for file in found.files:
        parts: list[str] = []
        for piece in iter_pieces(Sources((file,), 0), encoding=encoding, field=field):
            parts.append(piece.text)
            if piece.last:
                yield Document("".join(parts), file.name)
                parts = []


def _file_pieces(
    file: SourceFile, encoding: str, field: str, advance: Callable[[int], None]
) -> Iterator[Piece]:
    if file.kind == "text":
        yield from split_documents(text_blocks(file.path, encoding, advance))
    elif file.kind == "jsonl":
        for text in jsonl_texts(file.path, encoding, field, advance):
            yield from cut_text(text)
    elif file.kind == "parquet":
        for text in parquet_texts(file.path, field, advance):
            yield from cut_text(text)
    else:
        for text, done in pydocs_documents():
            advance(done)
            yield from cut_text(text)


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        kind = _KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _single_file(path: Path) -> SourceFile:
    try:
        size = path.stat().st_size
    except OSError as error:
        hint = "check the path" if isinstance(error, FileNotFoundError) else "check its permissions"
        raise ClearheadError(f"{path}: {error.strerror or error}; {hint}") from error
    kind = _kind(path)
    if kind is None:
        raise ClearheadError(f"{path}: unknown kind of source; known are {KNOWN_KINDS}")
    if not path.is_file():
        raise ClearheadError(f"{path}: not a regular file; give {KNOWN_KINDS}")
    if size == 0:
        raise ClearheadError(f"{path}: the file is empty; give one with text")
    return SourceFile(path.name, path, kind, size)


def _files_below(folder: Path) -> tuple[list[SourceFile], int]:
    """Find the known files below a folder, by path; links are followed, and loops are left."""

    def fail(error: OSError) -> None:
        raise ClearheadError(f"{error.filename}: cannot be read ({error.strerror})") from error

    found: list[SourceFile] = []
    ignored = 0
    visited: set[tuple[int, int]] = set()
    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = Path(current).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in (Path(current, name) for name in names):
            kind = _kind(path)
            if kind is None or not path.is_file():
                ignored += 1
                continue
            name = (Path(folder.resolve().name) / path.relative_to(folder)).as_posix()
            found.append(SourceFile(name, path, kind, path.stat().st_size))
    if not any(file.bytes for file in found):
        raise ClearheadError(f"{folder}: no text in this folder; known are {KNOWN_KINDS}")
    return sorted(found, key=lambda file: file.path.relative_to(folder).parts), ignored
