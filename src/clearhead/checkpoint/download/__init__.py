"""Models from where they were published, whole or not at all."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from clearhead.checkpoint.download.answer import MissingError, UnreachableError
from clearhead.checkpoint.download.http import Client
from clearhead.checkpoint.download.record import FileRecord, Record, open_record
from clearhead.checkpoint.download.sources import HUB, Place, place
from clearhead.checkpoint.download.transfer import Progress, RemoteFile, Transfer
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file

__all__ = ["Downloaded", "FileRecord", "Progress", "download"]

_LOCK = ".download.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Downloaded:
    """A folder of downloaded files."""

    folder: Path
    """Where they are."""
    source: str
    """openai, huggingface or an address."""
    files: Mapping[str, FileRecord]
    """Address, size and SHA-256 of each file, by its name."""
    fetched: tuple[str, ...]
    """Those that were not there before."""


def download(
    name: str,
    out: Path | None = None,
    *,
    source: str | None = None,
    mirror: str | None = None,
    sha256: str | None = None,
    progress: Progress = lambda *_: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Fetch a model's files as they were published.

    A transfer that broke off, or was killed, goes on where it was. Sizes are checked, and checksums
    where they are known. A file has its name only once it is whole, and download.json, which has
    the checksums of all, is written last. The environment's HF_ENDPOINT and HF_TOKEN are heeded;
    the token goes to that endpoint alone.

    Args:
        name: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, owner/name of the hub, or 124M,
            355M, 774M, 1558M of OpenAI.
        out: The folder to make; by default one called as the model.
        source: openai, huggingface, or the address of a file, or of a folder if it ends in a slash;
            by default the one that has such names.
        mirror: The address that stands for the source's own host.
        sha256: What the one file that `source` names should have.
        progress: Is told how far each file is.
        sleep: Waits so many seconds before trying again.

    Raises:
        ClearheadError: It cannot be had or written, or is not what it should be.
    """
    endpoint, token = os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN", "").strip()
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ClearheadError(f"--sha256 is {sha256[:80]!r}; it must be 64 hexadecimal digits")
    sha256 = sha256 and sha256.lower()
    where = place(name, source, mirror=mirror, endpoint=endpoint, sha256=sha256)
    out = Path(name.rpartition("/")[2]) if out is None else out
    client = Client(sleep, token, endpoint)
    try:
        with _locked(out):
            record = open_record(out, name, where.source)
            fetched = _fetch(record, where, client, progress, check_all=sha256 is not None)
    except UnreachableError as error:
        raise ClearheadError(
            f"{error}; if this machine is offline, fetch {where.by_hand} by hand on another and "
            f"bring them into {out}; if only that host is out of reach, name another with --mirror"
        ) from error
    except OSError as error:
        raise ClearheadError(_failure(out, error)) from error
    finally:
        client.close()
    return Downloaded(out, where.source, record.files, tuple(fetched))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Make the folder and keep others out; one in which nothing came about goes again."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / _LOCK, timeout=0):
            try:
                yield
            finally:
                (out / _LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise ClearheadError(f"another download into {out} is at work; wait for it") from error
    except BaseException:
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def _fetch(
    record: Record, where: Place, client: Client, progress: Progress, *, check_all: bool
) -> list[str]:
    """Bring the folder to be whole; return the names of what had to be fetched."""
    if record.is_finished and not check_all and _holds(record):
        return []
    fetched, wanted = [], set()
    for file in where.files(client, record.folder):
        if not _is_there(record, file):
            try:
                Transfer(client, file, record, progress).run()
            except MissingError:
                if file.is_optional:
                    continue
                raise
            fetched.append(file.name)
        wanted.add(file.name)
    record.files = {name: one for name, one in record.files.items() if name in wanted}
    record.finish()
    return fetched


def _holds(record: Record) -> bool:
    """Say whether every file of a finished download is still what it was."""
    paths = {record.folder / name: one.sha256 for name, one in record.files.items()}
    return all(path.is_file() and sha256_file(path) == sha for path, sha in paths.items())


def _is_there(record: Record, file: RemoteFile) -> bool:
    """Say whether a file need not be fetched; one of another's making is never overwritten."""
    path, known = record.folder / file.name, record.files.get(file.name)
    if not path.exists():
        return False
    sha256 = sha256_file(path)
    is_ours = known is not None and known.sha256 == sha256
    is_same = known is not None and is_ours and known.url == file.url
    wrong = file.mismatch(path, sha256)
    if wrong is None and (is_same or file.sha256 or file.git_sha1):
        record.files[file.name] = FileRecord(file.url, path.stat().st_size, sha256)
        return True
    if is_ours:
        return False
    raise ClearheadError(
        f"{path} exists already and {wrong or 'nothing tells whether it is whole'}; move it away, "
        "or choose another --out"
    )


def _failure(out: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"disk full while downloading into {out}; make room, and run again to go on from there"
        )
    return f"cannot write into {out}: {error.strerror or error}; choose another --out"
