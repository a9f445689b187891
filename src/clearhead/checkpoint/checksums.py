"""What a checkpoint's files should be: size and SHA-256 of each, in clearhead/checksums.json."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from clearhead.errors import ClearheadError
from clearhead.files import atomic_write, fsync_dir, sha256_file

OWN = "clearhead"
"""The subfolder for what only we need."""
CHECKSUMS = f"{OWN}/checksums.json"
"""The list itself, as a path within the checkpoint."""

_MAX_JSON_BYTES = 64 * 2**20  # no JSON file of ours comes near it; a hostile one may


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ClearheadError: It is missing, unreadable, far too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ClearheadError(f"{path} is damaged: no JSON of a checkpoint is so large")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ClearheadError(f"{path} is missing; take another checkpoint") from error
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ClearheadError(f"{path} is damaged: {reason}; take another checkpoint") from error
    if not isinstance(value, dict):
        raise ClearheadError(f"{path} is damaged: it holds no JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically; keys keep their order.

    Raises:
        ValueError: It holds a number that JSON has not (infinite, or not a number).
    """
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode())
        file.write(b"\n")


def seal(folder: Path) -> None:
    """Flush every file of a checkpoint to the disk, and write down what it should be."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {}
    for path in files:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        sums[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / CHECKSUMS, {"files": sums})
    fsync_dir(folder / OWN)
    fsync_dir(folder)


def replace_json(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON file of a sealed checkpoint anew; after a crash in between it is not listed."""
    path = folder / name
    sums = {key: {"bytes": n, "sha256": digest} for key, (n, digest) in _read_sums(folder).items()}
    sums.pop(name, None)
    write_json(folder / CHECKSUMS, {"files": sums})
    write_json(path, value)
    sums[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / CHECKSUMS, {"files": dict(sorted(sums.items()))})


def is_sealed(folder: Path) -> bool:
    """Say whether the folder is of our making; another's has no checksums to verify."""
    return (folder / OWN).is_dir()


def digest(path: Path) -> str:
    """Return a file's SHA-256 as its sealed folder lists it; of another's file, as it is.

    Raises:
        ClearheadError: The list is damaged.
        OSError: The file cannot be read.
    """
    listed = _read_sums(path.parent) if is_sealed(path.parent) else {}
    return listed[path.name][1] if path.name in listed else sha256_file(path)


def verify(folder: Path, *needed: str) -> None:
    """Check that all files have their sizes, and the needed ones (all by default) their content.

    Raises:
        ClearheadError: A file is missing, truncated or damaged; the message names it.
    """
    sums = _read_sums(folder)
    for name in needed:
        if name not in sums:
            raise ClearheadError(f"{folder / name} is not part of the checkpoint as it was saved")
    for name, (size, digest) in sums.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                reason = f"it has {found} bytes of {size}"
            elif (needed and name not in needed) or sha256_file(path) == digest:
                continue
            else:
                reason = "its checksum differs"
        except FileNotFoundError:
            raise ClearheadError(f"{path} is missing; take another checkpoint") from None
        except OSError as error:
            raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
        raise ClearheadError(f"{path} is damaged: {reason}; take another checkpoint")


def _read_sums(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and digest by file name."""
    path = folder / CHECKSUMS
    try:
        files = read_json(path)["files"]
        sums = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ClearheadError(f"{path} is damaged; take another checkpoint") from error
    for name in sums:
        parts = PurePosixPath(name).parts
        if (
            type(sums[name][0]) is not int
            or ".." in parts
            or name.startswith("/")
            or "\0" in name
            or not name.isprintable()
        ):
            raise ClearheadError(f"{path} is damaged: it lists {name[:80]!r}")
    return sums
