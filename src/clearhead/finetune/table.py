"""Rows of examples, from tables and JSON; a bad row is named by its place."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from clearhead.errors import ClearheadError, nearest

T = TypeVar("T")
Row = dict[str, Any]
KINDS = (".tsv", ".csv", ".json", ".jsonl")
_LARGEST = 2 * 2**30
_LONGEST_FIELD = 2**24
_SKIPPED_SHOWN = 20


@dataclass(frozen=True)
class Examples(Generic[T]):
    """What a file of examples holds."""

    rows: list[T]
    """The good rows, in the file's order."""
    n_skipped: int
    """How many bad rows were left out."""
    skipped: tuple[str, ...]
    """Where the first of them are, and what is wrong with each."""
    sha256: str
    """Of the file."""
    path: Path
    """The file."""


def read_examples(
    path: Path,
    parse: Callable[[Row], T],
    *,
    columns: tuple[str, ...] = (),
    skip_bad: bool | None = False,
) -> Examples[T]:
    """Read a file's rows, each made an example by `parse`.

    Args:
        path: .tsv (never quoted), .csv, .json (a list of objects) or .jsonl (one a line).
        parse: Returns a row's example; raises ClearheadError with what is wrong with it.
        columns: The columns that the rows must have, for tables. Numbers from 1 on name those of a
            table without a header.
        skip_bad: Count bad rows and go on; None: that is not on offer.

    Raises:
        ClearheadError: The file is missing, no such file, or holds no good row; or a row is bad
            and `skip_bad` is not set, the message has its line.
    """
    rows, n_skipped, skipped = [], 0, list[str]()
    for where, row in _rows(path, columns):
        try:
            if isinstance(row, ClearheadError):
                raise row
            rows.append(parse(row))
        except ClearheadError as error:
            if not skip_bad:
                other = "" if skip_bad is None else ", or leave bad rows out with --skip-bad"
                raise ClearheadError(f"{path}, {where}: {error}; mend it{other}") from error
            n_skipped += 1
            if n_skipped <= _SKIPPED_SHOWN:
                skipped.append(f"{where}: {error}")
    if not rows:
        bad = f"; {n_skipped} bad ones were left out" if n_skipped else ""
        raise ClearheadError(f"{path} holds no row to learn from{bad}")
    return Examples(
        rows, n_skipped, tuple(skipped), hashlib.sha256(path.read_bytes()).hexdigest(), path
    )


def text_of(row: Row, name: str, *, default: str | None = None) -> str:
    """Return a row's text under a name.

    Raises:
        ClearheadError: There is none, it is no text, or it is empty where nothing stands for it.
    """
    value = row.get(name, default)
    if value is None:
        hint = nearest(name, [str(key) for key in row])
        raise ClearheadError(f"it has no {name!r}; {hint}")
    if not isinstance(value, str):
        raise ClearheadError(f"{name!r} is {type(value).__name__}, not text")
    if default is None and not value.strip():
        raise ClearheadError(f"{name!r} is empty")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row | ClearheadError]]:
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ClearheadError(f"{path}: examples are read from {', '.join(KINDS)}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ClearheadError(f"{path} is larger than {_LARGEST >> 30} GiB; split it")
        if kind == ".json":
            yield from _json_list(path)
        elif kind == ".jsonl":
            yield from _json_lines(path)
        else:
            yield from _table(path, columns, tabs=kind == ".tsv")
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ClearheadError(f"{path} is not UTF-8 ({error.reason}); convert it") from error


def _json_list(path: Path) -> Iterator[tuple[str, Row | ClearheadError]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ClearheadError(f"{path}{where}: not valid JSON ({reason}); mend it") from error
    if not isinstance(values, list):
        raise ClearheadError(f"{path}: not a list of objects; give one, or a .jsonl file")
    for number, value in enumerate(values, start=1):
        yield f"row {number}", _object(value)


def _json_lines(path: Path) -> Iterator[tuple[str, Row | ClearheadError]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = str(error).splitlines()[0]
                    yield f"line {number}", ClearheadError(f"not valid JSON ({reason})")
                else:
                    yield f"line {number}", _object(value)


def _object(value: object) -> Row | ClearheadError:
    return value if isinstance(value, dict) else ClearheadError("it is no JSON object")


def _table(
    path: Path, columns: tuple[str, ...], *, tabs: bool
) -> Iterator[tuple[str, Row | ClearheadError]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        )
        names: list[str] | None = None
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield f"line {first}", ClearheadError(f"no row of a table ({error})")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if names is None:
                numbered = columns and all(column.isdecimal() for column in columns)
                names = [str(at) for at in range(1, len(cells) + 1)] if numbered else cells
                _check_columns(path, names, columns)
                if not numbered:
                    continue
            if len(cells) == len(names):
                yield f"line {first}", dict(zip(names, cells, strict=True))
            else:
                reason = f"{len(cells)} columns, where the first line has {len(names)}"
                yield f"line {first}", ClearheadError(reason)


def _check_columns(path: Path, names: list[str], columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in names:
            shown = ", ".join(repr(name[:20]) for name in names[:8])
            raise ClearheadError(
                f"{path} has no column {column!r} but {shown}; name one of these, or, if this is "
                "no header, give the columns' numbers from 1 on"
            )
