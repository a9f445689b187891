"""One checkpoint: a Hugging Face folder, with what only we need in its subfolder clearhead/."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from clearhead.checkpoint import checksums
from clearhead.checkpoint.checksums import CHECKSUMS, OWN, read_json, write_json
from clearhead.checkpoint.formats.huggingface import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_whole,
    open_huggingface,
    write_huggingface,
)
from clearhead.checkpoint.formats.source import ModelSource, build
from clearhead.checkpoint.quantized import load_quantized, quantization_of, write_quantized
from clearhead.checkpoint.tensors import Entry, read_tensors, write_tensors
from clearhead.errors import ClearheadError
from clearhead.files import fsync_dir
from clearhead.model import GPT, GPTConfig
from clearhead.quantize import is_quantized
from clearhead.tokenizer import Tokenizer, load_tokenizer

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def save(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    documents: Mapping[str, Mapping[str, Any]] = _NOTHING,
) -> None:
    """Save a model as a folder that transformers loads too, wholly or not at all.

    A quantised model's folder has tensors of its own, which others do not load.

    Args:
        folder: The folder to make; it must not exist.
        model: The model.
        tokenizer: The one that it was trained with.
        tensors: What else is to be kept, by the name under which `load_tensors` finds it.
        documents: The same for what JSON holds and `load_document` finds.

    Raises:
        ClearheadError: The folder exists, the tokenizer is another model's, the model has weights
            that the files have no place for, or they cannot be written. Nothing of the attempt is
            left, and earlier checkpoints are as they were.
    """
    check_tokenizer(folder, model.config, tokenizer)
    source = None if is_quantized(model) else ModelSource(model)

    def write(temporary: Path) -> None:
        if source is None:
            write_quantized(model, temporary, tokenizer)
        else:
            write_huggingface(source, temporary, tokenizer)

    save_folder(folder, write, tensors=tensors, documents=documents)


def save_folder(
    folder: Path,
    write: Callable[[Path], None],
    *,
    tensors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    documents: Mapping[str, Mapping[str, Any]] = _NOTHING,
) -> None:
    """Make a sealed folder, wholly or not at all.

    Args:
        folder: The folder to make; it must not exist.
        write: Writes what others read of it, into an empty folder.
        tensors: As in `save`.
        documents: As in `save`.

    Raises:
        ClearheadError: As in `save`.
    """
    _check_names([*tensors, *documents])
    if folder.exists():
        raise ClearheadError(f"{folder} exists already; delete it, or save under another name")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _make_parent(folder)
        _write(temporary, write, tensors, documents)
        temporary.rename(folder)
        fsync_dir(folder.parent)
    except OSError as error:
        raise ClearheadError(_failure(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    quantized: bool = False,
) -> tuple[GPT, Tokenizer]:
    """Load a checkpoint's model, in evaluation mode, and its tokenizer.

    Args:
        folder: The checkpoint, of our making or another's; see `resolve` for a run's.
        device: Where the weights go.
        dtype: What the weights become; as saved by default.
        verify: Whether to compare the files with their checksums first.
        quantized: Whether a quantised model will do, which computes and does not learn.

    Raises:
        ClearheadError: A file is missing or damaged, the files do not fit together, or the weights
            are quantised and must not be.
    """
    check_whole(folder)
    with ThreadPoolExecutor(2) as pool:
        verified = pool.submit(_verify, folder) if verify else None
        try:
            stored = quantization_of(folder)
            read = load_quantized if stored and quantized else _read
            built = pool.submit(read, folder, device, dtype)
            tokenizer = load_tokenizer(folder)
        finally:  # what a checksum tells goes before what follows from the damage
            if verified:
                verified.result()
    model = built.result()
    check_tokenizer(folder, model.config, tokenizer)
    return model, tokenizer


def _read(folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> GPT:
    with open_huggingface(folder, with_tokenizer=False) as source:
        return build(source, device, dtype)


def _verify(folder: Path) -> None:
    if checksums.is_sealed(folder):
        checksums.verify(folder, CONFIG, WEIGHTS, *TOKENIZER)


def load_model(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> GPT:
    """Load a checkpoint's model alone; see `load`."""
    check_whole(folder)
    if verify and checksums.is_sealed(folder):
        checksums.verify(folder, CONFIG, WEIGHTS)
    return _read(folder, device, dtype)


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Load the tensors that were saved as `tensors[name]`, on the CPU, verified.

    Raises:
        ClearheadError: The checkpoint has none of this name, or the file is damaged.
    """
    checksums.verify(folder, f"{OWN}/{name}.safetensors")
    return read_tensors(folder / OWN / f"{name}.safetensors")


def load_document(folder: Path, name: str) -> dict[str, Any]:
    """Load what was saved as `documents[name]`, verified.

    Raises:
        ClearheadError: The checkpoint has none of this name, or the file is damaged.
    """
    checksums.verify(folder, f"{OWN}/{name}.json")
    return read_json(folder / OWN / f"{name}.json")


def replace_document(folder: Path, name: str, document: Mapping[str, Any]) -> None:
    """Save a document of a checkpoint anew, atomically.

    Raises:
        ClearheadError: The checkpoint is not of our making, or damaged.
    """
    _check_names([name])
    checksums.replace_json(folder, f"{OWN}/{name}.json", document)


def _write(
    folder: Path,
    write: Callable[[Path], None],
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write every file of a checkpoint, to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / OWN).mkdir(parents=True)
    write(folder)
    for name, group in tensors.items():
        header = {key: Entry.of(tensor) for key, tensor in group.items()}
        write_tensors(folder / OWN / f"{name}.safetensors", header, group.__getitem__)
    for name, document in documents.items():
        write_json(folder / OWN / f"{name}.json", document)
    checksums.seal(folder)


def _make_parent(folder: Path) -> None:
    if not folder.parent.is_dir():
        folder.parent.mkdir(parents=True)
        fsync_dir(folder.parent.parent)


def _check_names(names: list[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[a-z0-9_]+", name) or f"{OWN}/{name}.json" == CHECKSUMS:
            raise ValueError(f"a checkpoint cannot hold something called {name!r}")


def check_tokenizer(folder: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer is a model's.

    Raises:
        ClearheadError: It has another vocabulary; the message names the folder.
    """
    if tokenizer.vocab_size != config.vocab_size:
        raise ClearheadError(
            f"{folder}: the model has a vocabulary of {config.vocab_size}, its tokenizer "
            f"({tokenizer.name}) one of {tokenizer.vocab_size}; they do not belong together"
        )


def _failure(folder: Path, error: OSError) -> str:
    """Say why saving failed, and what is still there."""
    earlier = [path.parent.parent.name for path in folder.parent.glob(f"[!.]*/{CHECKSUMS}")]
    kept = f"the previous checkpoint, {max(earlier)}, stays whole" if earlier else "nothing is lost"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"disk full while saving {folder}: {kept}; make room, then go on"
    return f"cannot save {folder}: {error.strerror or error}; {kept}"
