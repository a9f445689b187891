"""A checkpoint whose weights have 8 or 4 bits: the same folder, with tensors of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clearhead.checkpoint.checksums import read_json, write_json
from clearhead.checkpoint.formats.huggingface import (
    CONFIG,
    QUANTIZED,
    STORED,
    WEIGHTS,
    config_from_json,
    config_to_json,
)
from clearhead.checkpoint.formats.source import several
from clearhead.checkpoint.formats.table import our_weights
from clearhead.checkpoint.tensors import Entry, TensorFile, write_tensors
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.quantize import (
    BITS,
    GROUPS,
    QuantizedEmbedding,
    QuantizedLinear,
    is_quantized,
    padded,
)
from clearhead.tokenizer import Tokenizer, save_tokenizer

METHOD = "clearhead"
VERSION = 2
"""Of the layout of the whole numbers; the first held those of 4 bits in another order."""
_MATRICES = (".qkv.weight", ".out_proj.weight", ".up.weight", ".down.weight", "head.weight")
_EMBEDDING = "token_embedding.weight"
_CODES = {8: "I8", 4: "U8"}


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's weights are stored."""

    bits: int
    """8 or 4."""
    group: int
    """Neighbouring weights of a row that share a scale."""

    def to_json(self) -> dict[str, Any]:
        """Return what config.json says of it."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "bits": self.bits,
            "group_size": self.group,
        }


def quantization_of(folder: Path) -> Quantization | None:
    """Return how a folder's weights are stored; None if they are not quantised, or by others.

    Raises:
        ClearheadError: config.json is damaged, or says what there is not.
    """
    path = folder / CONFIG
    told = read_json(path).get(QUANTIZED)
    if not isinstance(told, dict) or told.get("quant_method") != METHOD:
        return None
    if told.get("version") != VERSION:
        raise ClearheadError(
            f"{path}: its weights lie as another version of clearhead has them; quantise the "
            "checkpoint that it was made from again"
        )
    bits, group = told.get("bits"), told.get("group_size")
    if bits not in BITS or group not in GROUPS:
        raise ClearheadError(
            f"{path}: {QUANTIZED} has bits {str(bits)[:20]} and group_size {str(group)[:20]}; "
            f"there are bits {', '.join(map(str, BITS))}, and groups {', '.join(map(str, GROUPS))}"
        )
    return Quantization(cast(int, bits), cast(int, group))


def quantized_config(folder: Path) -> GPTConfig:
    """Return the shape of a quantised model.

    Raises:
        ClearheadError: config.json is damaged, or of another architecture.
    """
    path = folder / CONFIG
    values = {key: value for key, value in read_json(path).items() if key != QUANTIZED}
    return config_from_json(values, str(path))


def write_quantized(model: GPT, folder: Path, tokenizer: Tokenizer) -> None:
    """Write a quantised model into an empty folder.

    Raises:
        OSError: A file cannot be written.
    """
    assert is_quantized(model)
    head = cast(QuantizedLinear, model.head)
    dtype = model.position_embedding.weight.dtype
    how = Quantization(head.bits, head.group)
    config = config_to_json(model.config, dtype, tokenizer.end_of_text)
    write_json(folder / CONFIG, {**config, QUANTIZED: how.to_json()})
    header = _header(model.config, how, Entry.of(torch.empty(0, dtype=dtype)).dtype)
    state = model.state_dict()
    stored = {
        name.replace("token_embedding.matrix.", "token_embedding."): state[name] for name in state
    }
    write_tensors(folder / WEIGHTS, header, stored.__getitem__)
    save_tokenizer(tokenizer, folder)


def load_quantized(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> GPT:
    """Load a quantised model, in evaluation mode.

    Args:
        folder: The checkpoint.
        device: Where the weights go.
        dtype: What norms, biases and activations become; as saved by default.

    Raises:
        ClearheadError: A file is missing or damaged, or the files do not fit together.
    """
    how, config = quantization_of(folder), quantized_config(folder)
    assert how is not None
    with TensorFile(folder / WEIGHTS) as file:
        stored = file.header.get("position_embedding.weight", Entry("F32", ())).dtype
        _check(folder, file.header, _header(config, how, stored), stored)
        tensors = {name: file.read(name).to(device) for name in file.header}
    if damaged := [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]:
        raise ClearheadError(f"{folder / WEIGHTS}: numbers are not finite in {several(damaged)}")
    model = _build(config, how, tensors)
    return (model if dtype is None else model.to(dtype)).eval()


def _header(config: GPTConfig, how: Quantization, floats: str) -> dict[str, Entry]:
    """Return the names, types and shapes of a file's tensors."""
    header = {}
    weights = dict(our_weights(config))
    if config.tied_head:
        weights["head.weight"] = weights.pop(_EMBEDDING)
    for name, shape in weights.items():
        if name.endswith(_MATRICES) or name == _EMBEDDING:
            (rows, columns), stem = shape, name.removesuffix("weight")
            width = padded(columns)
            header[f"{stem}codes"] = Entry(_CODES[how.bits], (rows, width * how.bits // 8))
            header[f"{stem}scales"] = Entry("F16", (rows, width // how.group))
        else:
            header[name] = Entry(floats, shape)
    return header


def _check(
    folder: Path, found: Mapping[str, Entry], wanted: Mapping[str, Entry], floats: str
) -> None:
    where = folder / WEIGHTS
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    if missing or surplus:
        parts = [f"missing {several(missing)}"] if missing else []
        parts += [f"surplus {several(surplus)}"] if surplus else []
        raise ClearheadError(
            f"{where}: its tensors are not those of its config: {'; '.join(parts)}"
        )
    for name, entry in wanted.items():
        if found[name] != entry or floats not in STORED:
            raise ClearheadError(
                f"{where}: {name} is {found[name].dtype} {list(found[name].shape)}, its config "
                f"asks for {entry.dtype} {list(entry.shape)}"
            )


def _build(config: GPTConfig, how: Quantization, tensors: dict[str, Tensor]) -> GPT:
    """Put a model together from its tensors."""
    with torch.device("meta"):
        model = GPT(config)
    made: dict[str, QuantizedLinear] = {}
    for name in [name for name in tensors if name.endswith(".codes")]:
        stem = name.removesuffix(".codes")
        bias = tensors.get(f"{stem}.bias")
        made[stem] = QuantizedLinear(
            tensors.pop(name),
            tensors.pop(f"{stem}.scales"),
            None if bias is None else nn.Parameter(bias),
            4 * config.d_model if stem.endswith(".down") else config.d_model,
            how.bits,
        )
    embedding = QuantizedEmbedding(made.pop("token_embedding", made["head"]))
    embedding.like = torch.empty(0, dtype=tensors["position_embedding.weight"].dtype)
    model.token_embedding = cast(nn.Embedding, embedding)
    for stem, layer in made.items():
        model.set_submodule(stem, layer)
    model.load_state_dict({**model.state_dict(), **tensors}, assign=True)
    return model
