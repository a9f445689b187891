"""What a folder of downloaded files holds, and how far an unfinished one is."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from clearhead.checkpoint.checksums import read_json, write_json
from clearhead.config import from_dict
from clearhead.errors import ClearheadError

R = TypeVar("R")
RECORD = "download.json"
"""Written last: the folder is whole."""
UNFINISHED = "download.json.part"
"""The same while files are still to come."""


@dataclass(frozen=True)
class FileRecord:
    """A file that is whole."""

    url: str
    """Where it came from."""
    bytes: int
    """Its size."""
    sha256: str
    """Its SHA-256 in hexadecimal."""


@dataclass(frozen=True)
class PartRecord:
    """A file that has been begun."""

    url: str
    """Where it comes from."""
    bytes: int | None
    """The size that it will have, if the server tells."""
    validator: str | None
    """What tells this version of it from another, if the server tells."""


@dataclass
class Record:
    """The content of a folder, kept on the disk as it grows."""

    folder: Path
    name: str
    source: str
    files: dict[str, FileRecord] = field(default_factory=dict)
    parts: dict[str, PartRecord] = field(default_factory=dict)
    is_finished: bool = False

    def save(self) -> None:
        """Write down how far it is."""
        write_json(self.folder / UNFINISHED, self._values())
        (self.folder / RECORD).unlink(missing_ok=True)

    def finish(self) -> None:
        """Write down that it is whole."""
        self.parts.clear()
        write_json(self.folder / RECORD, self._values())
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _values(self) -> dict[str, Any]:
        values = {"name": self.name, "from": self.source, "files": _plain(self.files)}
        return values | ({"parts": _plain(self.parts)} if self.parts else {})


def open_record(folder: Path, name: str, source: str) -> Record:
    """Return what a folder says of this download, or the beginning of one.

    Raises:
        ClearheadError: The folder holds another download, or its record is damaged.
    """
    for file in (RECORD, UNFINISHED):
        path = folder / file
        if not path.exists():
            continue
        values = read_json(path)
        if (values.get("name"), values.get("from")) != (name, source):
            was = f"{values.get('name')} from {values.get('from')}"
            raise ClearheadError(
                f"{folder} holds another download, {was[:200]}; choose another --out"
            )
        try:
            files = {
                key: from_dict(FileRecord, one, str(path)) for key, one in values["files"].items()
            }
            parts = {
                key: from_dict(PartRecord, one, str(path))
                for key, one in values.get("parts", {}).items()
            }
        except (KeyError, AttributeError, TypeError) as error:
            raise ClearheadError(f"{path} is damaged; delete it, and run again") from error
        return Record(folder, name, source, files, parts, is_finished=file == RECORD)
    return Record(folder, name, source)


def _read(cls: type[R], entries: dict[str, Any], path: Path) -> dict[str, R]:
    return {name: from_dict(cls, entry, str(path)) for name, entry in entries.items()}


def _plain(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: asdict(entry) for name, entry in entries.items()}
