"""TensorFlow's tensor bundle, read without TensorFlow.

The index is a LevelDB table: blocks of sorted keys, each written as what differs from the key
before, with a checksum a block. A key is a tensor's name, its value a protobuf that says where in
the data files the tensor lies. Nothing of it is believed before it is held against the files' own
sizes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from clearhead.checkpoint.tensors import DTYPES, Entry
from clearhead.errors import ClearheadError

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
"""The last bytes of every index."""
_FOOTER = 48
_TRAILER = 5  # after each block: one byte of compression, four of checksum
_CRC_MASK = 0xA282EAD8
_NUMBERS = {
    1: "F32",
    2: "F64",
    3: "I32",
    4: "U8",
    6: "I8",
    9: "I64",
    10: "BOOL",
    14: "BF16",
    19: "F16",
}
# Far beyond any GPT; an index that goes further would only use up memory.
_MOST_BYTES = 16 * 2**20
_MOST_TENSORS = 100_000
_LONGEST_NAME = 256
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class BundleEntry:
    """Where a tensor lies."""

    dtype: str
    """Its element type as safetensors writes it, "F32" for example."""
    shape: tuple[int, ...]
    """Its shape."""
    shard: int
    """The number of its data file."""
    offset: int
    """Its first byte there."""
    size: int
    """Its length in bytes, as its shape and type ask for."""
    crc32c: int
    """The masked CRC-32C of its bytes."""


class Bundle:
    """An open checkpoint of TensorFlow's, its data mapped into memory.

    Args:
        prefix: What its files' names begin with, "…/model.ckpt" for example.

    Raises:
        ClearheadError: A file is missing or damaged, or of a kind that is not read.
    """

    def __init__(self, prefix: Path) -> None:
        self.index = prefix.with_name(f"{prefix.name}.index")
        n_shards, self._entries = read_index(self.index)
        self._paths = {
            shard: prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}")
            for shard in sorted({entry.shard for entry in self._entries.values()})
        }
        self._data = {shard: _map(path, self.index) for shard, path in self._paths.items()}
        self._check_places()
        self.files = [self.index, *self._paths.values()]
        self.header = {name: Entry(one.dtype, one.shape) for name, one in self._entries.items()}

    def _check_places(self) -> None:
        """Check that each tensor lies within its file, and on no other's bytes."""
        for name, entry in self._entries.items():
            length, end = len(self._data[entry.shard]), entry.offset + entry.size
            if end > length:
                raise ClearheadError(
                    f"{self._paths[entry.shard]} is damaged: {name} should end at byte {end} of "
                    f"its {length}; take another copy of the checkpoint"
                )
        by_place = sorted(self._entries.items(), key=lambda item: (item[1].shard, item[1].offset))
        for (name, entry), (after, its) in pairwise(by_place):
            if its.shard == entry.shard and its.offset < entry.offset + entry.size:
                raise ClearheadError(
                    f"{self.index} is damaged: {name} and {after} overlap; take another copy"
                )

    def read(self, name: str) -> Tensor:
        """Return a tensor, a view of the file where its place allows that.

        Raises:
            ClearheadError: Its bytes have another checksum than the index says.
        """
        entry = self._entries[name]
        data = self._data[entry.shard][entry.offset : entry.offset + entry.size]
        found = masked_crc32c(data)
        if found != entry.crc32c:
            raise ClearheadError(
                f"{self._paths[entry.shard]} is damaged: the checksum of {name} is {found:08x}, "
                f"{self.index.name} says {entry.crc32c:08x}; take another copy of the checkpoint"
            )
        dtype = DTYPES[entry.dtype]
        if entry.offset % dtype.itemsize:  # not every processor reads numbers at odd addresses
            data = data.copy()
        return torch.from_numpy(data).view(dtype).reshape(entry.shape)

    def close(self) -> None:
        """Let go of the files; a tensor that is still in use keeps its own."""
        self._data.clear()


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C of some bytes as LevelDB and TensorFlow store it: rotated and offset."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


def read_index(path: Path) -> tuple[int, dict[str, BundleEntry]]:
    """Read an index.

    Returns:
        The number of data files, and each tensor's entry by its name.

    Raises:
        ClearheadError: It is missing, damaged, or of a kind that is not read here.
    """
    try:
        if not path.is_file():
            raise ClearheadError(f"{path} is missing; take another copy of the checkpoint")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB, too many for a GPT's")
        rows = _rows(path.read_bytes())
        n_shards = _n_shards(*next(rows, (b"", b"")))
        entries: dict[str, BundleEntry] = {}
        for key, value in rows:
            name = _name(key)
            entries[name] = _entry(name, value, n_shards)
            if len(entries) > _MOST_TENSORS:
                raise ValueError(f"it lists more than {_MOST_TENSORS} tensors")
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ClearheadError(f"{path} cannot be read as TensorFlow's index: {error}") from error
    return n_shards, entries


class _Reader:
    """Reads bytes in order, and never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def take(self, size: int) -> bytes:
        place, self._place = self._place, self._place + size
        if self._place > len(self._data):
            raise ValueError("an entry reaches beyond its block")
        return self._data[place : self._place]

    def varint(self) -> int:
        """Read a number of seven bits a byte, the lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number has more than 64 bits")


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of a LevelDB table, strictly ascending, and their values."""
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise ValueError("it has not the ending of one, so it is cut off or another file")
    footer = _Reader(data[-_FOOTER:])
    _, _, place, size = (footer.varint() for _ in range(4))
    last: bytes | None = None
    free = 0
    for _, handle in _block(data, place, size):
        reader = _Reader(handle)
        start, size = reader.varint(), reader.varint()
        # Blocks follow one another, so that none is read twice however many entries name it.
        if start < free:
            raise ValueError(f"the block at byte {start} overlaps the one before")
        free = start + size + _TRAILER
        for key, value in _block(data, start, size):
            if last is not None and key <= last:
                raise ValueError(f"its names are not in order after {_shown(last)}")
            last = key
            yield key, value


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block."""
    end = start + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise ValueError(f"the block at byte {start} reaches beyond its end")
    if masked_crc32c(data[start : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError(f"the checksum of the block at byte {start} differs; take another copy")
    if data[end]:
        raise ValueError(
            f"the block at byte {start} is compressed, as TensorFlow's own never are; save the "
            "checkpoint with TensorFlow again"
        )
    content = data[start:end]
    n_restarts = int.from_bytes(content[-4:], "little")
    if size < 4 + 4 * n_restarts:
        raise ValueError(f"the block at byte {start} is shorter than its own list of places")
    reader = _Reader(content[: size - 4 - 4 * n_restarts])
    key = b""
    while reader:
        shared, added, length = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key):
            raise ValueError(f"a name begins as none does, after {_shown(key)}")
        if shared + added > _LONGEST_NAME:
            raise ValueError(f"a name has more than {_LONGEST_NAME} bytes, after {_shown(key)}")
        key = key[:shared] + reader.take(added)
        yield key, reader.take(length)


def _message(data: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """Return a protobuf's numbers by field, the last of each, and its nested messages."""
    numbers: dict[int, int] = {}
    nested: dict[int, list[bytes]] = {}
    reader = _Reader(data)
    while reader:
        field, kind = divmod(reader.varint(), 8)
        if kind == 0:
            numbers[field] = reader.varint()
        elif kind in (1, 5):
            numbers[field] = int.from_bytes(reader.take(8 if kind == 1 else 4), "little")
        elif kind == 2:
            nested.setdefault(field, []).append(reader.take(reader.varint()))
        else:
            raise ValueError(f"field {field} is of kind {kind}, which protobufs no longer have")
    return numbers, nested


def _n_shards(key: bytes, header: bytes) -> int:
    """Return the number of data files that a BundleHeaderProto tells, if it is one we can read."""
    numbers, nested = _message(header)
    if key or numbers.get(1, 0) < 1:
        raise ValueError("it does not begin with the number of data files")
    if numbers.get(2, 0):
        raise ValueError("its numbers are big-endian; save it on a usual machine")
    if any(_message(version)[0].get(2, 0) > 1 for version in nested.get(3, [])):
        raise ValueError("it is of a version that was not known when this was written")
    return numbers[1]


def _entry(name: str, value: bytes, n_shards: int) -> BundleEntry:
    """Read a BundleEntryProto."""
    numbers, nested = _message(value)
    if 7 in nested:
        raise ValueError(f"{name} is saved in slices; save the variable whole")
    dtype = _NUMBERS.get(numbers.get(1, 0))
    if dtype is None:
        known = ", ".join(_NUMBERS.values())
        raise ValueError(f"{name} is of TensorFlow's type {numbers.get(1, 0)}; known are {known}")
    sizes = [one for shape in nested.get(2, []) for one in _message(shape)[1].get(2, [])]
    if len(sizes) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(sizes)} dimensions; {_MOST_DIMENSIONS} is the most")
    shape = tuple(_message(one)[0].get(1, 0) for one in sizes)
    asked, size = math.prod(shape) * DTYPES[dtype].itemsize, numbers.get(5, 0)
    if asked == 0 or asked != size:
        raise ValueError(f"{name} of shape {list(shape)} and type {dtype} has {size} bytes")
    shard, offset = numbers.get(3, 0), numbers.get(4, 0)
    if shard >= n_shards:
        raise ValueError(f"{name} lies in data file {shard}, the last is {n_shards - 1}")
    return BundleEntry(dtype, shape, shard, offset, size, numbers.get(6, 0))


def _name(key: bytes) -> str:
    name = key.decode(errors="replace")
    if not name.isprintable() or "\N{REPLACEMENT CHARACTER}" in name:
        raise ValueError(f"{_shown(key)} is no name of a tensor")
    return name


def _shown(key: bytes) -> str:
    return repr(key[:80])[1:]


def _map(path: Path, index: Path) -> np.ndarray:
    """Return a file's bytes; writable for torch's sake, though nothing reaches the file."""
    try:
        if not path.is_file():
            raise ClearheadError(f"{path} is missing; {index.name} lists tensors that are in it")
        is_empty = path.stat().st_size == 0  # which cannot be mapped
        return np.empty(0, np.uint8) if is_empty else np.asarray(np.memmap(path, np.uint8, "c"))
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
