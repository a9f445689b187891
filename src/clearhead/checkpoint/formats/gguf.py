"""GGUF, llama.cpp's format: a header of keys and tensors, then the tensors, some quantised."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from clearhead.checkpoint.formats.openai import byte_level_tokenizer
from clearhead.checkpoint.formats.source import Source, TableSource, parts
from clearhead.checkpoint.formats.table import Table, Weight
from clearhead.checkpoint.tensors import Entry
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig
from clearhead.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer

TABLE = Table(
    format="gguf",
    block="blk.{layer}.",
    outside=(
        ("token_embedding.weight", "token_embd.weight"),
        ("position_embedding.weight", "position_embd.weight"),
        ("norm.weight", "output_norm.weight"),
        ("norm.bias", "output_norm.bias"),
        ("head.weight", "output.weight"),
    ),
    in_block=(
        ("norm_1.weight", "attn_norm.weight"),
        ("norm_1.bias", "attn_norm.bias"),
        ("attention.qkv.weight", "attn_qkv.weight"),
        ("attention.qkv.bias", "attn_qkv.bias"),
        ("attention.out_proj.weight", "attn_output.weight"),
        ("attention.out_proj.bias", "attn_output.bias"),
        ("norm_2.weight", "ffn_norm.weight"),
        ("norm_2.bias", "ffn_norm.bias"),
        ("mlp.up.weight", "ffn_up.weight"),
        ("mlp.up.bias", "ffn_up.bias"),
        ("mlp.down.weight", "ffn_down.weight"),
        ("mlp.down.bias", "ffn_down.bias"),
    ),
)
_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_KINDS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 8: ("Q8_0", 32, 34)}
_KINDS[30] = ("BF16", 1, 2)
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CONFIG = {  # theirs: ours
    "gpt2.context_length": "context_length",
    "gpt2.embedding_length": "d_model",
    "gpt2.attention.head_count": "n_heads",
    "gpt2.block_count": "n_layers",
    "gpt2.attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_MOST_HEADER = 256 * 2**20


@dataclass(frozen=True)
class _Stored:
    kind: str
    shape: tuple[int, ...]
    begin: int
    size: int


class _Header:
    """The keys and tensors that a file's header tells, each held against the file's size."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._size = path, path.stat().st_size
        self._content = file.read(min(self._size, _MOST_HEADER))
        self._place = 0
        if self._take(4) != _MAGIC:
            raise self.damaged("it does not begin as GGUF")
        version, n_tensors, n_keys = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ClearheadError(f"{path}: GGUF version {version} is not known; 2 and 3 are")
        self.keys: dict[str, Any] = {}
        for _ in range(self._bounded(n_keys, 12)):
            name = self._string()
            self.keys[name] = self._value(*self._unpack("<I"))
        told = [self._tensor() for _ in range(self._bounded(n_tensors, 24))]
        step = self.keys.get("general.alignment", 32)
        if type(step) is not int or not 0 < step <= 2**16:
            raise self.damaged("its alignment is no small number")
        self.tensors = self._placed(told, -(-self._place // step) * step)

    def damaged(self, reason: str) -> ClearheadError:
        return ClearheadError(f"{self.path} is damaged: {reason}")

    def _take(self, count: int) -> bytes:
        if count > len(self._content) - self._place:
            raise self.damaged("its header ends too early")
        self._place += count
        return self._content[self._place - count : self._place]

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _bounded(self, count: int, least: int) -> int:
        """Return a count if that many things of at least so many bytes fit in what is left."""
        if count * least > len(self._content) - self._place:
            raise self.damaged(f"its header promises {count:,} entries, more than it can hold")
        return count

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        return self._take(length).decode(errors="replace")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(f"<{_SCALARS[kind]}")[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self.damaged(f"a value of the unknown kind {kind}")
        inner, count = self._unpack("<IQ")
        if inner == _STRING:
            return [self._string() for _ in range(self._bounded(count, 8))]
        if inner not in _SCALARS:
            raise self.damaged(f"an array of the unknown kind {inner}")
        size = struct.calcsize(_SCALARS[inner])
        return list(self._unpack(f"<{self._bounded(count, size)}{_SCALARS[inner]}"))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (n_dims,) = self._unpack("<I")
        if n_dims > 4:
            raise self.damaged(f"{name[:80]!r} has {n_dims} dimensions")
        shape = tuple(reversed(self._unpack(f"<{n_dims}Q")))
        kind, offset = self._unpack("<IQ")
        return name, shape, kind, offset

    def _placed(
        self, told: list[tuple[str, tuple[int, ...], int, int]], begin: int
    ) -> dict[str, _Stored]:
        found: dict[str, _Stored] = {}
        for name, shape, kind, offset in told:
            if kind not in _KINDS:
                raise ClearheadError(
                    f"{self.path}: {name[:80]!r} is quantised in a way that is not known (type "
                    f"{kind}); F32, F16, BF16, Q8_0 and Q4_0 are"
                )
            label, block, width = _KINDS[kind]
            if name in found or (shape and shape[-1] % block):
                raise self.damaged(f"{name[:80]!r} stands there twice or has a row cut in a block")
            found[name] = _Stored(label, shape, begin + offset, prod(shape) // block * width)
        end = 0
        for name, one in sorted(found.items(), key=lambda item: item[1].begin):
            if one.begin < end or one.begin + one.size > self._size:
                raise self.damaged(f"{name[:80]!r} lies over another tensor or outside the file")
            end = one.begin + one.size
        return found


def recognise(path: Path) -> bool:
    """Say whether a file begins as GGUF."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def open_gguf(path: Path, vocab_size: int | None = None) -> Source:
    """Open a GGUF file of GPT-2; quantised tensors become float32.

    Args:
        path: The file.
        vocab_size: Cuts the vocabulary; that of its own tokenizer by default.

    Raises:
        ClearheadError: It is damaged, or of another architecture.
    """
    _library()
    try:
        file = path.open("rb")
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header = _Header(path, file)
        stored, config = header.tensors, _config(header)
        kinds = {one.kind for one in stored.values()}
        plain = _PLAIN.get(kinds.copy().pop()) if len(kinds) == 1 else None
        notes = [f"stored as {', '.join(sorted(kinds))}, read as F32"] if plain is None else []
        return TableSource(
            path,
            TABLE,
            config,
            {name: Entry(one.kind, one.shape) for name, one in stored.items()},
            lambda name: _read(path, file, name, stored[name]),
            dtype=plain or torch.float32,
            vocab_size=vocab_size,
            tokenizer=_tokenizer(header),
            notes=notes,
            files=[path],
            close=file.close,
        )
    except BaseException:
        file.close()
        raise


def write_gguf(source: Source, folder: Path, dtype: str) -> list[str]:
    """Write model.gguf, as llama.cpp runs it, one tensor at a time.

    Matrices are stored as `dtype`; vectors and the positions stay f32, as llama.cpp wants them.

    Raises:
        ClearheadError: llama.cpp has no such tokenizer.
    """
    gguf = _library()
    config, tokenizer = source.config, source.tokenizer
    if tokenizer is None or tokenizer.name == "char":
        raise ClearheadError(
            "llama.cpp has no tokenizer of whole characters; train with bytes, bpe or gpt2"
        )
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    notes = []
    if config.d_model % 32 and dtype.startswith("q"):
        raise ClearheadError(
            f"{dtype} stores rows in blocks of 32, and d_model is {config.d_model}; take f16"
        )
    if config.exact_gelu:
        notes.append("llama.cpp computes GELU by its tanh approximation, this model exactly")
    weights = list(TABLE.weights(config))
    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    try:
        _write_keys(
            writer,
            config,
            tokenizer,
            gguf.LlamaFileType[f"MOSTLY_{kind.name}"].value if dtype != "f32" else 0,
        )
        for weight in weights:
            as_kind = _kind_of(weight, kind, gguf)
            block, width = gguf.GGML_QUANT_SIZES[as_kind]
            size = prod(weight.shape) // block * width
            writer.add_tensor_info(
                weight.theirs[0], weight.shape, np.dtype(np.float32), size, raw_dtype=as_kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight in weights:
            (tensor,) = parts(source, weight, torch.float32)
            array = tensor.detach().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(array, _kind_of(weight, kind, gguf)))
    finally:
        writer.close()
    return notes


def _kind_of(weight: Weight, kind: Any, gguf: Any) -> Any:
    is_matrix = len(weight.shape) == 2 and weight.ours != "position_embedding.weight"
    return kind if is_matrix else gguf.GGMLQuantizationType.F32


def _write_keys(writer: Any, config: GPTConfig, tokenizer: Tokenizer, file_type: int) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(4 * config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(file_type)
    content = json.loads(tokenizer.to_json())
    ids = {
        **content["model"]["vocab"],
        **{one["content"]: one["id"] for one in content["added_tokens"]},
    }
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == END_OF_TEXT else 1 for token in tokens])
    # An array of llama.cpp's must not be empty; this pair never occurs, for it is no token.
    writer.add_token_merges(merges or [f"{END_OF_TEXT} {END_OF_TEXT}"])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ClearheadError("GGUF needs a package: pip install 'clearhead[gguf]'") from error
    return gguf


def _config(header: _Header) -> GPTConfig:
    keys, tensors = header.keys, header.tensors
    architecture = keys.get("general.architecture")
    if architecture != "gpt2":
        raise ClearheadError(
            f"{header.path} holds the architecture {str(architecture)[:40]!r}; clearhead has gpt2"
        )
    embedding = tensors.get("token_embd.weight")
    given = {ours: keys[theirs] for theirs, ours in _CONFIG.items() if theirs in keys}
    if embedding is None or len(embedding.shape) != 2 or len(given) != len(_CONFIG):
        raise header.damaged("its header lacks the token embedding or a size")
    if keys.get("gpt2.feed_forward_length") != 4 * embedding.shape[1]:
        raise ClearheadError(f"{header.path}: its MLP is not 4 times as wide as the model")
    try:
        return GPTConfig(
            vocab_size=embedding.shape[0],
            dropout=0.0,
            tied_head="output.weight" not in tensors,
            **given,
        )
    except ClearheadError as error:
        raise header.damaged(str(error)) from error


def _read(path: Path, file: BinaryIO, name: str, stored: _Stored) -> Tensor:
    try:
        file.seek(stored.begin)
        content = bytearray(file.read(stored.size))
    except (OSError, ValueError) as error:
        raise ClearheadError(f"{path} cannot be read: {error}") from error
    if len(content) != stored.size or not content:
        raise ClearheadError(f"{path} is damaged: it ends within {name}")
    if stored.kind in _PLAIN:
        return torch.frombuffer(content, dtype=_PLAIN[stored.kind]).reshape(stored.shape)
    gguf = _library()
    rows = np.frombuffer(content, np.uint8).reshape(*stored.shape[:-1], -1)
    with np.errstate(all="ignore"):
        array = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[stored.kind])
    return torch.from_numpy(array).reshape(stored.shape)


def _tokenizer(header: _Header) -> Tokenizer | None:
    keys: Mapping[str, Any] = header.keys
    tokens, merges = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.merges")
    if keys.get("tokenizer.ggml.model") != "gpt2" or not (tokens and merges):
        return None
    if not all(isinstance(one, str) for one in (*tokens, *merges)):
        raise header.damaged("its tokenizer is not made of texts")
    known = set(tokens)
    kept = [one for one in merges if "".join(one.split(" ")) in known]
    try:
        made = byte_level_tokenizer({token: place for place, token in enumerate(tokens)}, kept)
    except (ValueError, RecursionError) as error:
        raise header.damaged(f"its tokenizer does not fit together: {error}") from error
    if len(known) != 50257:
        return made
    gpt2 = build_tokenizer("gpt2")
    return (
        gpt2 if json.loads(gpt2.to_json())["model"] == json.loads(made.to_json())["model"] else made
    )
