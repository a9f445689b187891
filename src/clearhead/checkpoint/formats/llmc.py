"""llm.c's model file: a header of 256 numbers, then each kind of tensor, all layers in a row."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clearhead.checkpoint.formats.source import Source, TableSource, parts
from clearhead.checkpoint.formats.table import Table
from clearhead.checkpoint.tensors import Entry
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

_MAGIC = 20240326
_HEADER = 256
_VERSIONS = {3: torch.float32, 5: torch.bfloat16}
_PADDING = 128
_ATTENTION = ("wte", "wpe", "ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb")
_REST = ("ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb", "lnfw", "lnfb")
TABLE = Table(
    format="llmc",
    block="{layer}.",
    outside=(
        ("token_embedding.weight", "wte"),
        ("position_embedding.weight", "wpe"),
        ("norm.weight", "lnfw"),
        ("norm.bias", "lnfb"),
        ("head.weight", "lm_head"),
    ),
    in_block=(
        ("norm_1.weight", "ln1w"),
        ("norm_1.bias", "ln1b"),
        ("attention.qkv.weight", "qkvw"),
        ("attention.qkv.bias", "qkvb"),
        ("attention.out_proj.weight", "attprojw"),
        ("attention.out_proj.bias", "attprojb"),
        ("norm_2.weight", "ln2w"),
        ("norm_2.bias", "ln2b"),
        ("mlp.up.weight", "fcw"),
        ("mlp.up.bias", "fcb"),
        ("mlp.down.weight", "fcprojw"),
        ("mlp.down.bias", "fcprojb"),
    ),
)


def recognise(path: Path) -> bool:
    """Say whether a file begins with llm.c's magic number."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC.to_bytes(4, "little")
    except OSError:
        return False


def open_llmc(path: Path, vocab_size: int | None = None) -> Source:
    """Open a model file of llm.c; its tensors are views of the file.

    Args:
        path: The file.
        vocab_size: Cuts the padded vocabulary; the header's own by default.

    Raises:
        ClearheadError: It is damaged, or of a version that is not known.
    """
    config, dtype, own_size = _read_header(path)
    places, end = {}, _HEADER * 4
    for name, shape in _in_order(config):
        places[name] = (end, shape)
        end += int(np.prod(shape, dtype=object)) * dtype.itemsize
    if path.stat().st_size != end:
        raise ClearheadError(
            f"{path} is damaged: it has {path.stat().st_size:,} bytes, its header asks for {end:,}"
        )
    content = np.memmap(path, np.uint8, "r")

    def read(name: str) -> Tensor:
        begin, shape = places[name]
        size = int(np.prod(shape)) * dtype.itemsize
        return torch.from_numpy(content[begin : begin + size].copy()).view(dtype).reshape(shape)

    stored = "F32" if dtype == torch.float32 else "BF16"
    header = {name: Entry(stored, shape) for name, (_, shape) in places.items()}
    return TableSource(
        path,
        TABLE,
        config,
        header,
        read,
        dtype=dtype,
        vocab_size=vocab_size or own_size,
        files=[path],
    )


def write_llmc(source: Source, folder: Path, dtype: str) -> list[str]:
    """Write model.bin, its vocabulary padded to a multiple of 128 with rows of zeros.

    Raises:
        ClearheadError: llm.c cannot hold such a model.
    """
    config = source.config
    if not config.tied_head:
        raise ClearheadError("llm.c ties the head to the token embedding; this model does not")
    version, stored = (3, torch.float32) if dtype == "f32" else (5, torch.bfloat16)
    padded = -(-config.vocab_size // _PADDING) * _PADDING
    header = np.zeros(_HEADER, "<i4")
    header[:8] = [
        _MAGIC,
        version,
        config.context_length,
        config.vocab_size,
        config.n_layers,
        config.n_heads,
        config.d_model,
        padded,
    ]
    weights = {weight.theirs[0]: weight for weight in TABLE.weights(config)}
    with (folder / "model.bin").open("xb") as file:
        file.write(header.tobytes())
        for name, _ in _in_order(config):
            (tensor,) = parts(source, weights[name], stored)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if name == "wte":
                missing = (padded - config.vocab_size) * config.d_model
                file.write(bytes(missing * stored.itemsize))
    if padded == config.vocab_size:
        return []
    return [f"vocabulary of {config.vocab_size:,} padded with zeros to {padded:,}, as llm.c has it"]


def _read_header(path: Path) -> tuple[GPTConfig, torch.dtype, int]:
    try:
        header = np.fromfile(path, "<i4", _HEADER)
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < _HEADER or header[0] != _MAGIC:
        raise ClearheadError(f"{path} is damaged: it does not begin as a model of llm.c")
    _, version, length, vocabulary, layers, heads, d_model, padded = (int(n) for n in header[:8])
    if version not in _VERSIONS:
        raise ClearheadError(f"{path}: version {version} of llm.c's file is not known; 3 or 5 are")
    if not 0 < vocabulary <= padded:
        raise ClearheadError(f"{path} is damaged: a vocabulary of {vocabulary}, padded to {padded}")
    if layers * 12 * d_model**2 > path.stat().st_size:
        raise ClearheadError(f"{path} is damaged: it is too small for {layers:,} layers")
    try:
        config = GPTConfig(
            vocab_size=padded,
            context_length=length,
            d_model=d_model,
            n_heads=heads,
            n_layers=layers,
            dropout=0.0,
        )
    except ClearheadError as error:
        raise ClearheadError(f"{path} is damaged: {error}") from error
    return config, _VERSIONS[version], vocabulary


def _in_order(config: GPTConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Return each tensor's name and shape in the order of the file."""
    shapes = {weight.theirs[0]: weight.shape for weight in TABLE.weights(config)}
    names = []
    for kind in (*_ATTENTION, *_REST):
        layers = [kind] if kind in shapes else [f"{n}.{kind}" for n in range(config.n_layers)]
        names += layers
    return [(name, shapes[name]) for name in names]
