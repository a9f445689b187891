"""Writes TensorFlow's tensor bundles, also such as TensorFlow never would."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clearhead.checkpoint.formats.bundle import MAGIC, masked_crc32c
from clearhead.checkpoint.formats.openai import TABLE
from clearhead.checkpoint.formats.source import ModelSource, parts
from clearhead.checkpoint.tensors import Entry
from clearhead.model import GPT

NUMBERS = {
    "F32": 1,
    "F64": 2,
    "I32": 3,
    "U8": 4,
    "I8": 6,
    "I64": 9,
    "BOOL": 10,
    "BF16": 14,
    "F16": 19,
}
RESTART_EVERY = 16


@dataclass
class Described:
    """What an index says of one tensor."""

    dtype: int
    shape: list[int]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: bytes = b""

    def to_bytes(self) -> bytes:
        """Return it as a BundleEntryProto."""
        shape = b"".join(nested(2, number(1, size)) for size in self.shape)
        middle = number(3, self.shard) + number(4, self.offset) + number(5, self.size)
        crc = varint(6 << 3 | 5) + self.crc32c.to_bytes(4, "little")
        return number(1, self.dtype) + nested(2, shape) + middle + crc + self.slices


def varint(value: int) -> bytes:
    """Return a number of 64 bits, seven a byte."""
    value &= 2**64 - 1
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    """Return a number's field, which is left out where it is zero."""
    return varint(field << 3) + varint(value) if value else b""


def nested(field: int, content: bytes) -> bytes:
    """Return a field that holds a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(n_shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    """Return a BundleHeaderProto."""
    version = number(1, 1) + number(2, min_consumer)
    return number(1, n_shards) + number(2, endianness) + nested(3, version)


def block(rows: Iterable[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """Return a block of a table, its trailer included."""
    content, restarts, last = b"", [], b""
    for place, (key, value) in enumerate(rows):
        shared = 0
        if place % RESTART_EVERY == 0:
            restarts.append(len(content))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        last = key
    for restart in restarts or [0]:
        content += restart.to_bytes(4, "little")
    content += len(restarts or [0]).to_bytes(4, "little") + bytes([compression])
    return content + masked_crc32c(content).to_bytes(4, "little")


def table(rows: list[tuple[bytes, bytes]], a_block: int = 50, compression: int = 0) -> bytes:
    """Return a whole table, with so many rows a block."""
    data, handles = b"", []
    for first in range(0, len(rows), a_block):
        some = rows[first : first + a_block]
        whole = block(some, compression)
        handles.append((some[-1][0], varint(len(data)) + varint(len(whole) - 5)))
        data += whole
    return finished(data, handles)


def finished(data: bytes, handles: list[tuple[bytes, bytes]]) -> bytes:
    """Return a table of blocks that are written: with its index block and footer."""
    meta, index = block([]), block(handles)
    footer = varint(len(data)) + varint(len(meta) - 5)
    footer += varint(len(data) + len(meta)) + varint(len(index) - 5)
    return data + meta + index + footer.ljust(40, b"\0") + MAGIC


def describe(
    tensors: Mapping[str, Tensor], n_shards: int = 1, gap: int = 0
) -> tuple[dict[str, Described], list[bytes]]:
    """Lay tensors out in data files, one after the other; return their entries and the files."""
    shards = [b""] * n_shards
    described = {}
    for place, name in enumerate(sorted(tensors)):
        tensor = tensors[name].contiguous()
        data = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        shard = place % n_shards
        kind = NUMBERS[Entry.of(tensor).dtype]
        shards[shard] += bytes(gap)
        place_there = len(shards[shard])
        described[name] = Described(
            kind, list(tensor.shape), shard, place_there, len(data), masked_crc32c(data)
        )
        shards[shard] += data
    return described, shards


def write(prefix: Path, described: Mapping[str, Described], shards: list[bytes]) -> None:
    """Write the files of a checkpoint."""
    rows = [(name.encode(), described[name].to_bytes()) for name in sorted(described)]
    index = table([(b"", header(len(shards))), *rows])
    prefix.with_name(f"{prefix.name}.index").write_bytes(index)
    for shard, data in enumerate(shards):
        data_file(prefix, shard, len(shards)).write_bytes(data)


def data_file(prefix: Path, shard: int = 0, n_shards: int = 1) -> Path:
    """Return the name of a data file."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}")


def write_bundle(
    prefix: Path, tensors: Mapping[str, Tensor], n_shards: int = 1, gap: int = 0
) -> None:
    """Write tensors as TensorFlow does."""
    write(prefix, *describe(tensors, n_shards, gap))


def openai_tensors(model: GPT) -> dict[str, Tensor]:
    """Return a model's tensors under OpenAI's names, linear layers as [1, in, out]."""
    source = ModelSource(model)
    tensors = {}
    for weight in TABLE.weights(model.config):
        (tensor,) = parts(source, weight)
        is_linear = weight.theirs[0].endswith("/w")
        tensors[weight.theirs[0]] = (tensor[None] if is_linear else tensor).contiguous()
    return tensors


def write_openai(folder: Path, model: GPT, name: str = "model.ckpt", n_shards: int = 1) -> Path:
    """Write a model as OpenAI released GPT-2, without a tokenizer; return the folder."""
    config = model.config
    hparams = {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }
    folder.mkdir(exist_ok=True)
    (folder / "hparams.json").write_text(json.dumps(hparams))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    write_bundle(folder / name, openai_tensors(model), n_shards)
    return folder
