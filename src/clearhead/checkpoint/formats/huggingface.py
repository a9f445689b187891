"""GPT-2 as Hugging Face stores it: its names, its layouts, its config."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from clearhead.checkpoint.checksums import read_json, write_json
from clearhead.checkpoint.formats.pickled import read_state_dict
from clearhead.checkpoint.formats.source import GPT2_VOCAB, Source, TableSource, parts
from clearhead.checkpoint.formats.table import Table
from clearhead.checkpoint.tensors import DTYPES, Entry, TensorFile, write_tensors
from clearhead.config import from_dict
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig
from clearhead.tokenizer import Tokenizer, build_tokenizer, load_tokenizer, save_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
QUANTIZED = "quantization_config"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_INDEX = "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_PREFIX = "transformer."

TABLE = Table(
    format="huggingface",
    block="transformer.h.{layer}.",
    outside=(
        ("token_embedding.weight", "transformer.wte.weight"),
        ("position_embedding.weight", "transformer.wpe.weight"),
        ("norm.weight", "transformer.ln_f.weight"),
        ("norm.bias", "transformer.ln_f.bias"),
        ("head.weight", "lm_head.weight"),
    ),
    in_block=(
        ("norm_1.weight", "ln_1.weight"),
        ("norm_1.bias", "ln_1.bias"),
        ("attention.qkv.weight", "attn.c_attn.weight"),
        ("attention.qkv.bias", "attn.c_attn.bias"),
        ("attention.out_proj.weight", "attn.c_proj.weight"),
        ("attention.out_proj.bias", "attn.c_proj.bias"),
        ("norm_2.weight", "ln_2.weight"),
        ("norm_2.bias", "ln_2.bias"),
        ("mlp.up.weight", "mlp.c_fc.weight"),
        ("mlp.up.bias", "mlp.c_fc.bias"),
        ("mlp.down.weight", "mlp.c_proj.weight"),
        ("mlp.down.bias", "mlp.c_proj.bias"),
    ),
    transposed=True,
)
_CLASSIFIER = "GPT2ForSequenceClassification"
_CLASSIFIER_TABLE = replace(TABLE, outside=(*TABLE.outside[:-1], ("head.weight", "score.weight")))
_CONFIG = {  # theirs: ours
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "tie_word_embeddings": "tied_head",
}
_OWN = ("qkv_bias", "bias")  # theirs has no such options; written where they are off
_HEADS = ("lm_head.weight", "score.weight")
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_FIXED: dict[str, tuple[Any, ...]] = {  # what would make it another architecture: the values we are
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
_EXACT_GELU = {"gelu_new": False, "gelu_pytorch_tanh": False, "gelu": True}
STORED = ("F32", "F16", "BF16")


def config_to_json(config: GPTConfig, dtype: torch.dtype, end_of_text: int) -> dict[str, Any]:
    """Return the content of config.json; biases that we leave out are told by keys of our own."""
    return {
        **_kind(config, end_of_text),
        **{key: allowed[0] for key, allowed in _FIXED.items()},
        **{theirs: getattr(config, ours) for theirs, ours in _CONFIG.items()},
        "activation_function": "gelu" if config.exact_gelu else "gelu_new",
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **{key: False for key in _OWN if not getattr(config, key)},
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _kind(config: GPTConfig, end_of_text: int) -> dict[str, Any]:
    """Return the keys that say what the head is for."""
    if not config.labels:
        return {"architectures": ["GPT2LMHeadModel"]}
    return {
        "architectures": [_CLASSIFIER],
        "id2label": {str(number): label for number, label in enumerate(config.labels)},
        "label2id": {label: number for number, label in enumerate(config.labels)},
        "pad_token_id": end_of_text,  # the last token that is not this one is judged by
        "problem_type": "single_label_classification",
    }


def _labels(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return what a classifier's head tells apart; nothing for a language model."""
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or _CLASSIFIER not in architectures:
        return ()
    named = values.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    ids = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    if not ids or any(type(named.get(one)) is not str for one in ids):
        raise ClearheadError(f"{where}: id2label must name the labels 0, 1, …")
    return tuple(named[one] for one in ids)


def config_from_json(values: Mapping[str, Any], where: str) -> GPTConfig:
    """Read config.json, ours or another's; what it leaves out is as in GPT-2.

    Args:
        values: Its content.
        where: The file, to begin an error message with.

    Raises:
        ClearheadError: It describes another architecture than ours, or makes no sense.
    """
    if QUANTIZED in values:
        raise ClearheadError(
            f"{where}: its weights are quantised; give the checkpoint that it was made from"
        )
    for key, allowed in _FIXED.items():
        value = values.get(key, None if key == "model_type" else allowed[0])
        if value not in allowed:
            raise ClearheadError(
                f"{where}: {key} is {short(value)}; clearhead has {allowed[0]!r} only"
            )
    names = {**_CONFIG, **dict.fromkeys(_OWN)}
    given = {names[key] or key: value for key, value in values.items() if key in names}
    dropouts = [values[key] for key in _DROPOUTS if key in values]
    if any(one != dropouts[0] for one in dropouts):
        raise ClearheadError(
            f"{where}: {', '.join(_DROPOUTS)} differ; clearhead has one dropout for all"
        )
    if dropouts:
        given["dropout"] = dropouts[0]
    activation = values.get("activation_function", "gelu_new")
    if activation not in _EXACT_GELU:
        raise ClearheadError(
            f"{where}: activation_function is {short(activation)}; clearhead has "
            f"{', '.join(_EXACT_GELU)} only"
        )
    given["exact_gelu"] = _EXACT_GELU[activation]
    if labels := _labels(values, where):
        given |= {"labels": labels, "tied_head": False}
    config = from_dict(GPTConfig, given, where)
    inner = values.get("n_inner")
    if inner not in (None, 4 * config.d_model):
        raise ClearheadError(f"{where}: n_inner is {short(inner)}; clearhead has 4·n_embd only")
    return config


def recognise(path: Path) -> bool:
    """Say whether it is a Hugging Face folder."""
    return (path / CONFIG).is_file() or is_adapter(path)


def is_adapter(path: Path) -> bool:
    """Say whether it is a folder with an adapter, which needs the model that it belongs to."""
    return (path / ADAPTER_CONFIG).is_file()


def check_whole(path: Path) -> None:
    """Check that a folder is no adapter.

    Raises:
        ClearheadError: It is one.
    """
    if is_adapter(path):
        raise ClearheadError(
            f"{path} is an adapter; make a whole model of it with clearhead merge DIR --out DIR"
        )


def open_huggingface(
    path: Path, vocab_size: int | None = None, *, with_tokenizer: bool = True
) -> Source:
    """Open a Hugging Face folder: safetensors in one file or many, or a safe pickle.

    Args:
        path: The folder.
        vocab_size: Cuts the vocabulary; its own tokenizer's by default, if it has one.
        with_tokenizer: Whether to read the tokenizer.

    Raises:
        ClearheadError: A file is missing or damaged, or the files do not fit together.
    """
    check_whole(path)
    config = config_from_json(read_json(path / CONFIG), str(path / CONFIG))
    tokenizer = _tokenizer(path, config) if with_tokenizer else None
    with ExitStack() as stack:
        files, header, read = _open_weights(path, stack)
        is_bare = "transformer.wte.weight" not in header and "wte.weight" in header
        names = {
            (_PREFIX + name if is_bare and name not in _HEADS else name): name
            for name in header
            if not _is_mask(name)
        }
        notes = ["names without the prefix 'transformer.'"] if is_bare else []
        where = files[0]
        if config.tied_head and "lm_head.weight" in names:
            _check_tied(where, read, names)
            del names["lm_head.weight"]
            notes.append("the head stored apart, equal to the token embedding")
        source = TableSource(
            path,
            _table(config),
            config,
            {name: header[stored] for name, stored in names.items()},
            lambda name: read(names[name]),
            dtype=_dtype(header, where, notes),
            vocab_size=vocab_size or (tokenizer or config).vocab_size,
            tokenizer=tokenizer,
            notes=notes,
            files=[path / CONFIG, *files],
            where=where,
        )
        source.check_zeros()
        source.on_close = stack.pop_all().close
        return source


def write_huggingface(
    source: Source, folder: Path, tokenizer: Tokenizer, dtype: torch.dtype | None = None
) -> None:
    """Write a source as a Hugging Face folder, one tensor at a time.

    Args:
        source: The model.
        folder: An empty folder.
        tokenizer: Its tokenizer.
        dtype: What the weights are stored in; as in the source by default.

    Raises:
        OSError: A file cannot be written.
    """
    dtype = dtype or source.dtype
    weights = {weight.theirs[0]: weight for weight in _table(source.config).weights(source.config)}
    stored = Entry.of(torch.empty(0, dtype=dtype)).dtype
    header = {name: Entry(stored, weight.shape) for name, weight in weights.items()}
    end_of_text = tokenizer.end_of_text
    write_json(folder / CONFIG, config_to_json(source.config, dtype, end_of_text))
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": end_of_text, "eos_token_id": end_of_text},
    )
    write_tensors(folder / WEIGHTS, header, lambda name: parts(source, weights[name], dtype)[0])
    save_tokenizer(tokenizer, folder)


def _table(config: GPTConfig) -> Table:
    return _CLASSIFIER_TABLE if config.labels else TABLE


def _tokenizer(path: Path, config: GPTConfig) -> Tokenizer | None:
    if (path / TOKENIZER[0]).exists():
        return load_tokenizer(path)
    return build_tokenizer("gpt2") if config.vocab_size == GPT2_VOCAB else None


def _open_weights(
    path: Path, stack: ExitStack
) -> tuple[list[Path], dict[str, Entry], Callable[[str], Tensor]]:
    """Open the file or files of weights; return them, what they hold, and how to read it."""
    if not (path / WEIGHTS).exists() and (path / _INDEX).exists():
        shards = _shards(path)
    elif not (path / WEIGHTS).exists() and (path / _PICKLED).exists():
        state = read_state_dict(path / _PICKLED)
        entries = {name: Entry.of(tensor) for name, tensor in state.items()}
        return [path / _PICKLED], entries, state.__getitem__
    else:
        shards = [path / WEIGHTS]
    opened = [stack.enter_context(TensorFile(shard)) for shard in shards]
    home = {name: file for file in opened for name in file.header}
    header = {name: file.header[name] for name, file in home.items()}
    return shards, header, lambda name: home[name].read(name)


def _shards(path: Path) -> list[Path]:
    """Return the files that an index names, none of them outside the folder."""
    names = read_json(path / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ClearheadError(f"{path / _INDEX} is damaged: it has no weight_map")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ClearheadError(
                f"{path / _INDEX} names {name[:80]!r}, which is outside the folder"
            )
    return [path / name for name in shards]


def _dtype(header: Mapping[str, Entry], where: Path, notes: list[str]) -> torch.dtype:
    """Return the widest type that the tensors are stored in."""
    kinds = {entry.dtype for name, entry in header.items() if not _is_mask(name)}
    if strange := sorted(kinds - set(STORED)):
        raise ClearheadError(
            f"{where}: its tensors hold {', '.join(strange)}; clearhead reads {', '.join(STORED)}"
        )
    if len(kinds) > 1:
        notes.append(f"stored as {' and '.join(sorted(kinds))}, read as F32")
        return torch.float32
    return DTYPES[kinds.pop()] if kinds else torch.float32


def _check_tied(where: Path, read: Callable[[str], Tensor], names: Mapping[str, str]) -> None:
    """Refuse a head that is stored beside the token embedding and is not equal to it."""
    embedding = names.get("transformer.wte.weight")
    if embedding and not torch.equal(read("lm_head.weight"), read(embedding)):
        raise ClearheadError(
            f"{where}: lm_head.weight is not the token embedding, though config.json ties them: "
            'set "tie_word_embeddings": false'
        )


def _is_mask(name: str) -> bool:
    """Say whether it is one of the causal masks that old files hold, which are no weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))
