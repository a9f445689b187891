"""Safetensors files, with errors for the person at the keyboard."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clearhead.errors import ClearheadError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's types by the names that safetensors gives them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor."""

    dtype: str
    """Its element type as safetensors writes it, "F32" for example."""
    shape: tuple[int, ...]
    """Its shape."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor."""
        return cls(_NAMES[tensor.dtype], tuple(tensor.shape))


class TensorFile:
    """An open safetensors file, read tensor by tensor into memory of its own.

    The library checks that the header fits the file. Reading does not go through its memory map:
    pages of a map stay in memory as long as it does, and a model would be there twice.

    Raises:
        ClearheadError: It cannot be read or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                self._file = path.open("rb")
            size = int.from_bytes(self._file.read(8), "little")
            entries = json.loads(self._file.read(size))
        except FileNotFoundError as error:
            raise ClearheadError(f"{path} is missing; take another checkpoint") from error
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error).splitlines()[0]) from error
        entries.pop("__metadata__", None)
        self.header = {
            name: Entry(one["dtype"], tuple(one["shape"])) for name, one in entries.items()
        }
        self._begins = {name: 8 + size + one["data_offsets"][0] for name, one in entries.items()}

    def read(self, name: str) -> Tensor:
        """Return a tensor, in memory that is aligned as torch's own.

        Sums over it therefore come out bit for bit as they did before it was saved.

        Raises:
            ClearheadError: It cannot be read.
        """
        entry = self.header[name]
        if entry.dtype not in DTYPES:
            raise ClearheadError(f"{self.path}: {name} holds {entry.dtype}, which is not known")
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        try:
            self._file.seek(self._begins[name])
            found = self._file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error
        if found != tensor.nbytes:
            raise self._damaged(f"it ends within {name}")
        return tensor

    def _damaged(self, reason: str) -> ClearheadError:
        return ClearheadError(f"{self.path} is damaged: {reason}; take another checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file.

    Raises:
        ClearheadError: It cannot be read or is damaged.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.header}


def write_tensors(path: Path, header: Mapping[str, Entry], read: Callable[[str], Tensor]) -> None:
    """Write a new file tensor by tensor, so that no second copy of a model is ever in memory.

    Args:
        path: The file.
        header: What it will hold.
        read: Returns each tensor by its name, in the type and shape that the header says.

    Raises:
        OSError: It cannot be written; the disk is full, for example.
    """
    # Wider types first, so that each tensor begins at a multiple of its own element's size.
    names = sorted(header, key=lambda name: (-DTYPES[header[name].dtype].itemsize, name))
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        entry = header[name]
        begin, end = end, end + math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        described[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name).detach().cpu().contiguous()
            assert Entry.of(tensor) == header[name], name
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
