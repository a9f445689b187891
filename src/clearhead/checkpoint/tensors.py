"""Safetensors files, with errors for the person at the keyboard."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor."""

    dtype: str
    """Its element type as safetensors writes it, "F32" for example."""
    shape: tuple[int, ...]
    """Its shape."""


class TensorFile:
    """An open safetensors file; the library has checked that its header fits its content."""

    def __init__(self, file: Any) -> None:
        """Read the header of what `safe_open` gave."""
        self._file = file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        self.header = {
            name: Entry(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()
        }

    def read(self, name: str) -> Tensor:
        """Return a tensor, a view of the file until it is copied."""
        return self._file.get_tensor(name)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file; errors in the block are said to be of this file.

    Raises:
        ClearheadError: It cannot be read or is damaged, or the block found something wrong.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield TensorFile(file)
    except FileNotFoundError as error:
        raise ClearheadError(f"{path} is missing; take another checkpoint") from error
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ClearheadError(f"{path} is damaged: {reason}; take another checkpoint") from error
    except ClearheadError as error:
        raise ClearheadError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file, in memory of its own.

    The copy is aligned as torch's own memory is, so that sums over it come out bit for bit as
    they did before it was saved; and it outlives the file.

    Raises:
        ClearheadError: As `open_tensors`.
    """
    with open_tensors(path) as file:
        return {name: file.read(name).clone() for name in file.header}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a new file.

    Raises:
        OSError: It cannot be written; the disk is full, for example.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library hides the system's error number in its words
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
