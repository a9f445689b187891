"""One file from a server to the disk: resumed, tried again, checked, and whole or not there."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clearhead.checkpoint.download.answer import Answer, BrokenError
from clearhead.checkpoint.download.http import Client
from clearhead.checkpoint.download.record import FileRecord, PartRecord, Record
from clearhead.errors import ClearheadError
from clearhead.files import fsync_dir, sha256_file

Progress = Callable[[str, int, int | None], None]
"""Takes a file's name, the bytes of it that are there, and how many it will have if known."""

_UNANNOUNCED = 64 << 20  # the largest file whose size nobody tells


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch, and what is known of it beforehand."""

    name: str
    """Its name in the folder."""
    url: str
    """Its address."""
    size: int | None = None
    """Its size in bytes."""
    sha256: str | None = None
    """Its SHA-256 in hexadecimal."""
    git_sha1: str | None = None
    """The SHA-1 that git gives it."""
    is_optional: bool = False
    """Whether the folder is whole without it."""

    def mismatch(self, path: Path, sha256: str) -> str | None:
        """Return what is wrong with a file that should be this one, None if nothing is."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, not {self.size:,}"
        if self.sha256 is not None and sha256 != self.sha256:
            return f"its SHA-256 is {sha256}, not {self.sha256}"
        if self.git_sha1 is not None and _git_sha1(path) != self.git_sha1:
            return "its content is another"
        return None


class Transfer:
    """Fetches one file into a folder.

    Args:
        client: Sends the requests.
        file: What to fetch.
        record: The folder, and what has been begun in it.
        progress: Is told how far it is.
    """

    def __init__(
        self, client: Client, file: RemoteFile, record: Record, progress: Progress
    ) -> None:
        self._client, self._file, self._record, self._progress = client, file, record, progress
        self._path = record.folder / file.name
        self._part = record.folder / f"{file.name}.part"
        self._brought = 0

    def run(self) -> None:
        """Fetch the file.

        Raises:
            MissingError: The server does not have it.
            UnreachableError: No server has ever been reached.
            ClearheadError: It cannot be had, or is not what it should be.
            OSError: It cannot be written.
        """
        self._client.persist(self._attempt, lambda: self._brought)

    def _attempt(self) -> None:
        self._brought = 0
        begun, held = self._begun()
        if begun is None or held != begun.bytes:
            headers = {"Range": f"bytes={held}-"} if held else {}
            if held and begun and begun.validator:
                headers["If-Range"] = begun.validator
            with self._client.get(self._file.url, headers) as answer:
                held = self._accept(answer, held, begun)
                self._receive(answer, held)
        self._finish(is_resumed=held > 0)

    def _begun(self) -> tuple[PartRecord | None, int]:
        """Return what an earlier attempt left that can be gone on with, and its bytes."""
        begun = self._record.parts.get(self._file.name)
        if begun is None or begun.url != self._file.url or not self._part.exists():
            return None, 0
        held = self._part.stat().st_size
        can_tell = begun.validator is not None or self._file.sha256 is not None
        is_too_long = begun.bytes is not None and held > begun.bytes
        return (None, 0) if is_too_long or not can_tell else (begun, held)

    def _accept(self, answer: Answer, held: int, begun: PartRecord | None) -> int:
        """Check what the server announces; return the bytes that stand before what it sends."""
        if answer.is_beyond_end or (answer.is_part and begun is None):
            raise self._begin_anew("answers for another part than was asked for")
        if not answer.is_part:
            self._check_announced(answer)
            self._part.unlink(missing_ok=True)  # first, lest a crash lets it pass for the new one's
            self._write_down(answer.length if self._file.size is None else self._file.size, answer)
            return 0
        assert begun is not None
        if answer.range is None or answer.range[0] != held or answer.range[1] != answer.range[2]:
            raise self._begin_anew("sends another part than was asked for")
        begin, end, size = answer.range
        if answer.length not in (None, end - begin):
            raise self._begin_anew("announces two different lengths")
        if _differ(begun.bytes, size) or _differ(begun.validator, answer.validator):
            raise self._begin_anew("has changed meanwhile")
        if begun.bytes is None:
            self._write_down(size, answer)
        return held

    def _check_announced(self, answer: Answer) -> None:
        """Refuse a file that is known to be another, or that nothing could tell to be whole."""
        url, size = self._file.url, self._file.size
        if size is not None and answer.length not in (None, size):
            raise ClearheadError(
                f"{url} announces {answer.length:,} bytes where {size:,} are expected; "
                "take another mirror"
            )
        is_told = answer.length is not None or answer.is_chunked or size is not None
        if not is_told and self._file.sha256 is None:
            raise ClearheadError(
                f"{url} does not tell its length, so that nothing shows whether it is whole; "
                "give its --sha256, or take another mirror"
            )

    def _receive(self, answer: Answer, held: int) -> None:
        """Write what comes behind the bytes that are held."""
        begun = self._record.parts[self._file.name]
        most = _UNANNOUNCED if begun.bytes is None else begun.bytes
        self._check_room(most - held if begun.bytes is not None else 0)
        done = held
        with self._part.open("r+b" if held else "wb") as part:
            part.seek(held)
            self._progress(self._file.name, done, begun.bytes)
            for block in answer.blocks():
                if done + len(block) > most:
                    again = self._begin_anew(f"sends more than the {most:,} bytes to be expected")
                    raise ClearheadError(f"{again}; take another mirror")
                part.write(block)
                done += len(block)
                self._brought += len(block)
                self._progress(self._file.name, done, begun.bytes)
            part.flush()
            os.fsync(part.fileno())
        if begun.bytes is not None and done < begun.bytes:
            raise BrokenError(
                f"{self._file.url}: broke off after {done:,} of {begun.bytes:,} bytes"
            )

    def _finish(self, *, is_resumed: bool) -> None:
        """Give a file its own name, if it is what it should be."""
        sha256 = sha256_file(self._part)
        if wrong := self._file.mismatch(self._part, sha256):
            again = self._begin_anew(f"is not what it should be: {wrong}")
            if is_resumed:
                raise again
            raise ClearheadError(f"{again}; take another mirror")
        size = self._part.stat().st_size
        self._part.replace(self._path)
        fsync_dir(self._path.parent)
        self._record.files[self._file.name] = FileRecord(self._file.url, size, sha256)
        self._record.parts.pop(self._file.name, None)
        self._record.save()

    def _begin_anew(self, reason: str) -> BrokenError:
        """Throw away what an attempt left; return why."""
        self._part.unlink(missing_ok=True)
        self._record.parts.pop(self._file.name, None)
        self._record.save()
        return BrokenError(f"{self._file.url} {reason}")

    def _write_down(self, size: int | None, answer: Answer) -> None:
        """Keep what tells a later attempt, or a later process, how to go on."""
        begun = PartRecord(self._file.url, size, answer.validator)
        if self._record.parts.get(self._file.name) != begun:
            self._record.parts[self._file.name] = begun
            self._record.save()

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._record.folder).free
        if needed > free:
            raise ClearheadError(
                f"{self._path} needs {needed:,} bytes more, and the disk has {free:,} left; make "
                "room, or choose another --out"
            )


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def _git_sha1(path: Path) -> str:
    head = f"blob {path.stat().st_size}\0".encode()
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.sha1(head, usedforsecurity=False)
        ).hexdigest()
