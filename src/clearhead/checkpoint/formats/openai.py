"""OpenAI's GPT-2 checkpoint: TensorFlow's files, hparams.json, encoder.json and vocab.bpe."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from clearhead.checkpoint.checksums import read_json
from clearhead.checkpoint.formats.bundle import Bundle
from clearhead.checkpoint.formats.source import Source, TableSource, several
from clearhead.checkpoint.formats.table import Table
from clearhead.checkpoint.tensors import DTYPES, Entry
from clearhead.config import from_dict
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file
from clearhead.model import GPTConfig
from clearhead.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer
from clearhead.tokenizer.gpt2 import SHA256
from clearhead.tokenizer.huggingface import byte_level_json
from clearhead.tokenizer.learnt import BPETokenizer
from clearhead.tokenizer.reading import read_tokenizer_file

TABLE = Table(
    format="openai",
    block="model/h{layer}/",
    outside=(
        ("token_embedding.weight", "model/wte"),
        ("position_embedding.weight", "model/wpe"),
        ("norm.weight", "model/ln_f/g"),
        ("norm.bias", "model/ln_f/b"),
    ),
    in_block=(
        ("norm_1.weight", "ln_1/g"),
        ("norm_1.bias", "ln_1/b"),
        ("attention.qkv.weight", "attn/c_attn/w"),
        ("attention.qkv.bias", "attn/c_attn/b"),
        ("attention.out_proj.weight", "attn/c_proj/w"),
        ("attention.out_proj.bias", "attn/c_proj/b"),
        ("norm_2.weight", "ln_2/g"),
        ("norm_2.bias", "ln_2/b"),
        ("mlp.up.weight", "mlp/c_fc/w"),
        ("mlp.up.bias", "mlp/c_fc/b"),
        ("mlp.down.weight", "mlp/c_proj/w"),
        ("mlp.down.bias", "mlp/c_proj/b"),
    ),
    transposed=True,
)
_HPARAMS = "hparams.json"
_CONFIG = {  # theirs: ours
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_layer": "n_layers",
}
_STATE = "checkpoint"
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"([^"\n]+)"', re.MULTILINE)
_ENCODER, _MERGES = "encoder.json", "vocab.bpe"
_STORED = ("F32", "F16", "BF16")
_MOST_TEXT = 64 * 2**20


def recognise(path: Path) -> bool:
    """Say whether it is a folder of OpenAI's, or the index in one."""
    try:
        if path.is_file():
            return path.suffix == ".index" and (path.parent / _HPARAMS).is_file()
        if not (path / _HPARAMS).is_file():
            return False
        return (path / _STATE).is_file() or any(path.glob("*.index"))
    except (OSError, ValueError):
        return False


def open_openai(path: Path, vocab_size: int | None = None) -> Source:
    """Open a checkpoint as OpenAI released GPT-2, or as its fine-tuning scripts save it.

    Args:
        path: The folder, or the index of one of its checkpoints.
        vocab_size: Cuts the vocabulary; its own tokenizer's by default, if it has one.

    Raises:
        ClearheadError: A file is missing or damaged, or the files do not fit together.
    """
    folder, prefix = (path, _newest(path)) if path.is_dir() else (path.parent, path.with_suffix(""))
    notes: list[str] = []
    hparams = folder / _HPARAMS
    config = _config(read_json(hparams), hparams, notes)
    tokenizer = _tokenizer(folder)
    bundle = Bundle(prefix)
    header = {
        name: Entry(one.dtype, _shape(name, one.shape)) for name, one in bundle.header.items()
    }
    return TableSource(
        path,
        TABLE,
        config,
        header,
        lambda name: bundle.read(name).view(header[name].shape),
        dtype=_dtype(header, bundle.index, notes),
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        notes=notes,
        files=[hparams, *bundle.files],
        where=bundle.index,
        close=bundle.close,
    )


def _newest(folder: Path) -> Path:
    """Return what the names of the newest checkpoint's files begin with, as TensorFlow does."""
    state = folder / _STATE
    if not state.is_file():
        indexes = sorted(folder.glob("*.index"))
        if len(indexes) != 1:
            names = several([one.name for one in indexes]) or "none"
            raise ClearheadError(
                f"{folder} has no file '{_STATE}' that tells which index to read, and of those not "
                f"one alone ({names}); give the one that is meant, as FOLDER/NAME.index"
            )
        return indexes[0].with_suffix("")
    found = _NEWEST.search(_text(state))
    # Scripts write the path as it was on their machine; the files are in this folder.
    name = PureWindowsPath(found[1]).name if found else ""
    if not name or not name.isprintable():
        raise ClearheadError(f"{state} is damaged: it names no checkpoint; delete it")
    return folder / name


def _config(values: Mapping[str, Any], path: Path, notes: list[str]) -> GPTConfig:
    if missing := [key for key in _CONFIG if key not in values]:
        raise ClearheadError(f"{path} lacks {', '.join(missing)}; take another copy of it")
    if others := [key for key in values if key not in _CONFIG]:
        notes.append(f"{_HPARAMS} also has {several(others)}, which GPT-2's does not")
    given = {ours: values[theirs] for theirs, ours in _CONFIG.items()}
    return from_dict(GPTConfig, given, str(path))


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape as the table has it; linear layers are stored as convolutions of width 1."""
    is_linear = name.endswith("/w") and len(shape) == 3 and shape[0] == 1
    return shape[1:] if is_linear else shape


def _dtype(header: Mapping[str, Entry], where: Path, notes: list[str]) -> torch.dtype:
    """Return the widest type that the tensors are stored in."""
    kinds = sorted({entry.dtype for entry in header.values()})
    if strange := [kind for kind in kinds if kind not in _STORED]:
        raise ClearheadError(
            f"{where}: its tensors hold {', '.join(strange)}; clearhead reads {', '.join(_STORED)}"
        )
    if len(kinds) > 1:
        notes.append(f"stored as {' and '.join(kinds)}, read as F32")
        return torch.float32
    return DTYPES[kinds[0]] if kinds else torch.float32


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return GPT-2's own tokenizer if the files are GPT-2's, one made of them if they are not."""
    missing = [name for name in SHA256 if not (folder / name).is_file()]
    if len(missing) == len(SHA256):
        return None
    if missing:
        other = next(name for name in SHA256 if name not in missing)
        raise ClearheadError(
            f"{folder / missing[0]} is missing, and {other} is of no use without it; put it there, "
            f"or take {other} away and name a tokenizer"
        )
    merges = _text(folder / _MERGES).splitlines()
    vocab = read_json(folder / _ENCODER)
    if all(sha256_file(folder / name) == digest for name, digest in SHA256.items()):
        return build_tokenizer("gpt2")
    try:
        if not merges or not merges[0].startswith("#version"):
            raise ValueError(f"{_MERGES} does not begin with its version")
        return byte_level_tokenizer(vocab, [one for one in merges[1:] if one])
    except (ValueError, RecursionError) as error:
        raise ClearheadError(
            f"{folder / _ENCODER} and {_MERGES} are damaged or do not belong together: {error}"
        ) from error


def byte_level_tokenizer(vocab: dict[str, Any], merges: list[str]) -> Tokenizer:
    """Return the tokenizer of a byte-level BPE's vocabulary and merges, without trusting them.

    Args:
        vocab: Token, in byte characters, to id.
        merges: Pairs of tokens, a blank between.

    Raises:
        ValueError: They do not belong together.
    """
    end_of_text = vocab.get(END_OF_TEXT, len(vocab))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    content = {
        "added_tokens": [{"content": END_OF_TEXT, "special": True, "id": end_of_text}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    # Read as a tokenizer.json is, since those checks are what keeps damage away from Rust.
    file = read_tokenizer_file(json.dumps(content))
    return BPETokenizer(byte_level_json(file.vocab, file.merges))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_TEXT:
            raise ClearheadError(f"{path} is damaged: it is larger than {_MOST_TEXT >> 20} MiB")
        return path.read_bytes().decode()
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClearheadError(f"{path} is damaged: no UTF-8 text at byte {error.start}") from error
