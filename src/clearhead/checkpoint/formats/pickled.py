"""State dicts that torch saved: read as tensors alone, never as code."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.checkpoint.tensors import DTYPES, Entry
from clearhead.errors import ClearheadError

_WRAPPERS = ("model", "model_state_dict", "state_dict")
_PREFIXES = ("_orig_mod.", "module.")
_STORED = ("F32", "F16", "BF16")
_KNOWN = frozenset(DTYPES.values())


def looks_pickled(path: Path) -> bool:
    """Say whether a file may be one that torch saved: an archive, or a bare pickle."""
    try:
        with path.open("rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def read_pickled(path: Path) -> dict[str, Any]:
    """Return what torch saved in a file, if it is a dictionary of tensors and plain values.

    Raises:
        ClearheadError: It carries code (which is not run), is damaged, or is something else.
    """
    _check_archive(path)
    try:
        # No memory map: a file that another process cuts short would end ours without a word.
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise ClearheadError(_refusal(path, error)) from error
    except Exception as error:  # torch tells damage in a dozen ways
        raise ClearheadError(f"{path} is damaged: {_first_line(error)}") from error
    if not isinstance(value, Mapping):
        raise ClearheadError(f"{path} holds no state dict, but a {type(value).__name__}")
    return dict(value)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch saved; see `state_dict_of`."""
    return state_dict_of(read_pickled(path), path)


def state_dict_of(saved: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of one within a training checkpoint.

    Prefixes that torch.compile and DataParallel add are taken off.

    Raises:
        ClearheadError: There is none, or a tensor is none that a file can hold.
    """
    for name in _WRAPPERS:
        if isinstance(saved.get(name), Mapping):
            saved = saved[name]
            break
    tensors = {}
    for name, tensor in saved.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue
        if not _is_plain(tensor):
            raise ClearheadError(f"{path}: {name[:80]!r} is damaged, or no dense tensor")
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        tensors[name] = tensor
    if not tensors:
        raise ClearheadError(f"{path} holds no tensors")
    return tensors


def entries_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Entry]:
    """Describe tensors of weights.

    Raises:
        ClearheadError: One has no type of weights.
    """
    entries = {name: Entry.of(tensor) for name, tensor in tensors.items()}
    for name, entry in entries.items():
        if entry.dtype not in _STORED:
            raise ClearheadError(
                f"{path}: {name[:80]!r} holds {entry.dtype}; clearhead reads {', '.join(_STORED)}"
            )
    return entries


def widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the type that holds every tensor."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _is_plain(tensor: Tensor) -> bool:
    """Say whether it is dense, of a known type, and has in its storage what it claims to have."""
    if tensor.layout != torch.strided or tensor.dtype not in _KNOWN or tensor.is_meta:
        return False
    needed = tensor.numel() * tensor.element_size()
    return needed <= tensor.untyped_storage().nbytes()


def _check_archive(path: Path) -> None:
    """Refuse an archive whose parts are packed: it could hold far more than its size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # the library tells damage in several ways
        raise ClearheadError(f"{path} is damaged: {_first_line(error)}") from error
    size = path.stat().st_size
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size > size for part in parts):
        raise ClearheadError(f"{path} is damaged: torch does not pack what it saves")


def _refusal(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({found[1]})" if found else ""
    return f"{path} is damaged, or carries code{what}; it was not run. Ask for safetensors instead"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
