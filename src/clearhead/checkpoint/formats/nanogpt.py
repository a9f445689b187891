"""nanoGPT's ckpt.pt, and minGPT's state dict, which has the same names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.checkpoint.formats import huggingface
from clearhead.checkpoint.formats.pickled import (
    entries_of,
    looks_pickled,
    read_pickled,
    state_dict_of,
    widest,
)
from clearhead.checkpoint.formats.source import Source, TableSource, heads_of, parts
from clearhead.checkpoint.tensors import DTYPES
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

# nanoGPT took Hugging Face's names, not its layout.
TABLE = replace(
    huggingface.TABLE,
    format="nanogpt",
    transposed=False,
    optional=(".bias",),
    head_always=True,
)
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_NARROW = {512: 8, 192: 6, 128: 4, 48: 3}  # minGPT's own small models


def recognise(path: Path) -> bool:
    """Say whether a file is a state dict with these names."""
    if not path.is_file() or not looks_pickled(path):
        return False
    try:
        return _EMBEDDING in state_dict_of(read_pickled(path), path)
    except ClearheadError:
        return False


def open_nanogpt(
    path: Path, vocab_size: int | None = None, *, n_heads: int | None = None
) -> Source:
    """Open nanoGPT's ckpt.pt, or minGPT's state dict.

    Args:
        path: The file.
        vocab_size: Cuts a padded vocabulary; to GPT-2's by default.
        n_heads: The number of heads, which minGPT's file does not tell.

    Raises:
        ClearheadError: It is damaged, or its parts do not fit together.
    """
    saved = read_pickled(path)
    tensors = state_dict_of(saved, path)
    tensors = {name: one for name, one in tensors.items() if not name.endswith(".attn.bias")}
    arguments = saved.get("model_args")
    known = arguments if isinstance(arguments, Mapping) else {}
    config = config_of(tensors, known, path, n_heads)
    return TableSource(
        path,
        TABLE,
        config,
        entries_of(tensors, path),
        tensors.__getitem__,
        dtype=widest(tensors),
        vocab_size=vocab_size,
        files=[path],
    )


def config_of(
    tensors: Mapping[str, Tensor], known: Mapping[str, Any], path: Path, n_heads: int | None
) -> GPTConfig:
    """Read the model's shape off its tensors, and its heads off nanoGPT's arguments."""
    for name in (_EMBEDDING, "transformer.wpe.weight", _HEAD):
        if name not in tensors or tensors[name].ndim != 2:
            raise ClearheadError(f"{path}: its tensors are not those of its config: missing {name}")
    embedding, positions = tensors[_EMBEDDING], tensors["transformer.wpe.weight"]
    vocabulary, d_model = embedding.shape
    numbers = [name.split(".")[2] for name in tensors if name.startswith("transformer.h.")]
    return GPTConfig(
        vocab_size=vocabulary,
        context_length=len(positions),
        d_model=d_model,
        n_heads=heads_of(d_model, n_heads or known.get("n_head"), path, _NARROW),
        n_layers=1 + max((int(one) for one in numbers if one.isdecimal()), default=0),
        dropout=0.0,
        # nanoGPT computes GELU exactly, minGPT (whose file has no arguments) as GPT-2 does.
        exact_gelu=bool(known),
        qkv_bias="transformer.h.0.attn.c_attn.bias" in tensors,
        bias="transformer.h.0.ln_1.bias" in tensors,
        tied_head=torch.equal(embedding, tensors[_HEAD]),
    )


def write_nanogpt(source: Source, folder: Path, dtype: str) -> list[str]:
    """Write ckpt.pt, as nanoGPT's --init_from=resume and sample.py read it.

    Raises:
        ClearheadError: nanoGPT cannot hold such a model.
    """
    config = source.config
    if config.qkv_bias != config.bias:
        raise ClearheadError("nanoGPT has biases everywhere or nowhere; this model has some")
    if not config.tied_head:
        raise ClearheadError("nanoGPT ties the head to the token embedding; this model does not")
    tensors = {
        weight.theirs[0]: parts(source, weight, DTYPES[dtype.upper()])[0]
        for weight in TABLE.weights(config)
    }
    arguments = {
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.d_model,
        "block_size": config.context_length,
        "bias": config.bias,
        "vocab_size": config.vocab_size,
        "dropout": 0.0,
    }
    tensors[_HEAD] = tensors[_EMBEDDING]
    saved = {"model": tensors, "model_args": arguments, "config": {}, "iter_num": 0}
    torch.save(saved, folder / "ckpt.pt")
    return []
