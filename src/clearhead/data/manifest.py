"""What a prepared folder says about itself: `manifest.json`, checked before it is believed."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clearhead.errors import ClearheadError

FORMAT = 1
MANIFEST = "manifest.json"
DOCUMENTS = "documents.bin"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = {"uint16": 2, "uint32": 4}
T = TypeVar("T")

_MOST = 1 << 62  # far beyond any disk, and sums of two stay within 64 bits


@dataclass(frozen=True)
class SourceRecord:
    """A source file as it was when it was read."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides the content of a prepared folder, and nothing else."""

    format: int
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    end_of_text: int
    dtype: str
    """"uint16" or "uint32"; little-endian on the disk."""
    shard_tokens: int
    """Tokens in each shard but the last."""
    encoding: str
    field: str
    sources: tuple[SourceRecord, ...]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token on the disk."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Manifest(Plan):
    """The plan, and what came of it."""

    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of all documents, end-of-text tokens not counted."""
    shards: tuple[Shard, ...]
    documents_sha256: str
    """Of `documents.bin`: the position of each document's first token, uint64, little-endian."""


def is_prepared(path: str | Path) -> bool:
    """Tell whether `path` is a folder that `prepare` has finished."""
    return (Path(path) / MANIFEST).is_file()


def describe(folder: str | Path) -> Manifest:
    """Read what a prepared folder holds, without reading its tokens.

    Raises:
        ClearheadError: It is no finished prepared folder, or its manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ClearheadError(
            f"{folder}: no prepared corpus ({MANIFEST} is missing); "
            "make one with: clearhead data prepare SOURCE --out DIR"
        )
    try:
        values = json.loads(path.read_bytes())
        manifest = parse(Manifest, values)
        _check(manifest)
    except OSError as error:
        raise ClearheadError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ClearheadError(
            f"{path}: damaged manifest ({error}); prepare the corpus again"
        ) from error
    return manifest


def dump(record: Plan) -> bytes:
    """Write a plan or manifest as JSON, the same bytes for the same content."""
    return (json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=True) + "\n").encode()


def parse(cls: type[T], values: object) -> T:
    """Build a dataclass of this module from parsed JSON.

    Raises:
        ValueError: A field is missing, unknown or of the wrong type, or a number is out of range.
    """
    fields = {field.name: field.type for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != fields.keys():
        raise ValueError(f"a {cls.__name__} has exactly the fields {', '.join(fields)}")
    return cls(**{name: _field(name, kind, values[name]) for name, kind in fields.items()})


def _field(name: str, kind: Any, value: object) -> object:
    records = {tuple[Shard, ...]: Shard, tuple[SourceRecord, ...]: SourceRecord}
    if kind in records:
        if not isinstance(value, list):
            raise ValueError(f"'{name}' is no list")
        return tuple(parse(records[kind], entry) for entry in value)
    if type(value) is not kind:
        raise ValueError(f"'{name}' is no {kind.__name__}")
    if isinstance(value, int) and not 0 <= value <= _MOST:
        raise ValueError(f"'{name}' is out of range: {value}")
    if name.endswith("sha256") and not _SHA256.fullmatch(str(value)):
        raise ValueError(f"'{name}' is no SHA-256")
    return value


def _check(manifest: Manifest) -> None:
    """Check that the fields agree; raises ValueError."""
    if manifest.format != FORMAT:
        raise ValueError(f"format {manifest.format}, where this version reads {FORMAT}")
    if manifest.dtype not in _DTYPES:
        raise ValueError(f"'dtype' is '{manifest.dtype}', neither uint16 nor uint32")
    if not 0 < manifest.vocab_size <= 256**manifest.token_bytes:
        raise ValueError(f"'vocab_size' {manifest.vocab_size} does not fit {manifest.dtype}")
    if manifest.end_of_text >= manifest.vocab_size:
        raise ValueError(f"'end_of_text' {manifest.end_of_text} is outside the vocabulary")
    if not 0 < manifest.documents <= manifest.tokens:
        raise ValueError(f"{manifest.documents} documents in {manifest.tokens} tokens")
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise ValueError(f"shard {number} is called '{shard.name}'")
        last = number == len(manifest.shards) - 1
        if not 0 < shard.tokens <= manifest.shard_tokens or (
            shard.tokens < manifest.shard_tokens and not last
        ):
            raise ValueError(f"shard {number} has {shard.tokens} tokens")
    if sum(shard.tokens for shard in manifest.shards) != manifest.tokens:
        raise ValueError("the shards' tokens do not add up to 'tokens'")


def shard_name(number: int) -> str:
    """Name the file of shard `number`, counted from 0."""
    return f"tokens-{number:05d}.bin"
