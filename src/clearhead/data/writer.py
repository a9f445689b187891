"""The token files of a folder that is being prepared, and the journal that lets it go on."""

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearhead.data.manifest import (
    DOCUMENTS,
    MANIFEST,
    Manifest,
    Plan,
    Shard,
    dump,
    parse,
    shard_name,
)
from clearhead.data.workers import Encoded
from clearhead.errors import ClearheadError
from clearhead.files import atomic_write, sha256_file

JOURNAL = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the files on the disk are surely written."""

    batches: int = 0
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    document_start: int = 0
    """Position of the first token of the document that is being written."""


class Writer:
    """Appends encoded batches to shards of a fixed number of tokens.

    The journal holds what is safe on the disk; everything behind it is cut off when a killed run
    goes on. Nothing here depends on time or on the number of processes.
    """

    def __init__(self, folder: Path, plan: Plan, progress: Progress) -> None:
        self.folder = folder
        self.plan = plan
        self.progress = progress
        self._saved = progress
        self._unsynced: set[Path] = set()
        self._cut_back()

    def add(self, encoded: Encoded) -> None:
        """Append one batch."""
        now = self.progress
        self._append_tokens(encoded.ids)
        ends = encoded.ends.astype("<u8") + np.uint64(now.tokens)
        if len(ends):
            starts = np.concatenate([np.array([now.document_start], "<u8"), ends[:-1]])
            self._append(self.folder / DOCUMENTS, starts.tobytes())
        self.progress = Progress(
            batches=now.batches + 1,
            tokens=now.tokens + len(encoded.ids) // self.plan.token_bytes,
            documents=now.documents + len(ends),
            text_bytes=now.text_bytes + encoded.text_bytes,
            document_start=int(ends[-1]) if len(ends) else now.document_start,
        )

    def save(self) -> None:
        """Make all that was added durable and note it in the journal."""
        for path in self._unsynced:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        write_journal(self.folder, self.plan, self.progress)
        self._saved = self.progress

    @property
    def unsaved_tokens(self) -> int:
        """Tokens that a kill would lose now."""
        return self.progress.tokens - self._saved.tokens

    def finish(self) -> Manifest:
        """Write the manifest, which makes the folder a prepared one, and drop the journal."""
        self.save()
        shards = []
        for number in range(-(-self.progress.tokens // self.plan.shard_tokens)):
            path = self.folder / shard_name(number)
            tokens = path.stat().st_size // self.plan.token_bytes
            shards.append(Shard(path.name, tokens, sha256_file(path)))
        manifest = Manifest(
            **{f.name: getattr(self.plan, f.name) for f in dataclasses.fields(Plan)},
            tokens=self.progress.tokens,
            documents=self.progress.documents,
            text_bytes=self.progress.text_bytes,
            shards=tuple(shards),
            documents_sha256=sha256_file(self.folder / DOCUMENTS),
        )
        with atomic_write(self.folder / MANIFEST) as file:
            file.write(dump(manifest))
        (self.folder / JOURNAL).unlink()
        return manifest

    def _append_tokens(self, ids: bytes) -> None:
        width = self.plan.token_bytes
        tokens, offset = self.progress.tokens, 0
        while offset < len(ids):
            number, within = divmod(tokens, self.plan.shard_tokens)
            stop = offset + (self.plan.shard_tokens - within) * width
            chunk = ids[offset:stop]
            self._append(self.folder / shard_name(number), chunk)
            tokens += len(chunk) // width
            offset += len(chunk)

    def _append(self, path: Path, content: bytes) -> None:
        with path.open("ab") as file:
            file.write(content)
        self._unsynced.add(path)

    def _cut_back(self) -> None:
        """Bring the files to the length that the journal knows, as a kill may have left more."""
        width, now = self.plan.token_bytes, self.progress
        full, rest = divmod(now.tokens, self.plan.shard_tokens)
        wanted = {shard_name(n): self.plan.shard_tokens * width for n in range(full)}
        if rest:
            wanted[shard_name(full)] = rest * width
        if now.documents:
            wanted[DOCUMENTS] = now.documents * 8
        for path in [*self.folder.glob("tokens-*.bin"), self.folder / DOCUMENTS]:
            if path.name not in wanted:
                path.unlink(missing_ok=True)
        for name, size in wanted.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise ClearheadError(
                    f"{path}: shorter than the journal says; remove {self.folder} and start again"
                )
            os.truncate(path, size)


def write_journal(folder: Path, plan: Plan, progress: Progress) -> None:
    """Note how far the folder's files are whole."""
    content = {"plan": json.loads(dump(plan)), "progress": dataclasses.asdict(progress)}
    with atomic_write(folder / JOURNAL) as file:
        file.write(json.dumps(content, indent=1).encode())


def read_journal(folder: Path) -> tuple[Plan, Progress] | None:
    """Read how far an unfinished folder is; None if it holds no journal.

    Raises:
        ClearheadError: The journal is damaged.
    """
    path = folder / JOURNAL
    try:
        content = json.loads(path.read_bytes())
        return parse(Plan, content["plan"]), parse(Progress, content["progress"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ClearheadError(
            f"{path}: damaged ({error}); remove {folder} and start again"
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors while writing into one line.

    Raises:
        ClearheadError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ClearheadError(
                f"{folder}: the disk is full; free some space and run the same command again "
                "to go on"
            ) from error
        raise ClearheadError(
            f"{folder}: cannot be written ({error.strerror or error}); mend that, or choose "
            "another --out"
        ) from error
