"""The state dict of the GPT that "Build a Large Language Model (From Scratch)" builds."""

from pathlib import Path

import torch

from clearhead.checkpoint.formats.pickled import (
    entries_of,
    looks_pickled,
    read_state_dict,
    widest,
)
from clearhead.checkpoint.formats.source import Source, TableSource, heads_of, parts
from clearhead.checkpoint.formats.table import Table
from clearhead.checkpoint.tensors import DTYPES
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

TABLE = Table(
    format="book",
    block="trf_blocks.{layer}.",
    outside=(
        ("token_embedding.weight", "tok_emb.weight"),
        ("position_embedding.weight", "pos_emb.weight"),
        ("norm.weight", "final_norm.scale"),
        ("norm.bias", "final_norm.shift"),
        ("head.weight", "out_head.weight"),
    ),
    in_block=(
        ("norm_1.weight", "norm1.scale"),
        ("norm_1.bias", "norm1.shift"),
        (
            "attention.qkv.weight",
            ("att.W_query.weight", "att.W_key.weight", "att.W_value.weight"),
        ),
        ("attention.qkv.bias", ("att.W_query.bias", "att.W_key.bias", "att.W_value.bias")),
        ("attention.out_proj.weight", "att.out_proj.weight"),
        ("attention.out_proj.bias", "att.out_proj.bias"),
        ("norm_2.weight", "norm2.scale"),
        ("norm_2.bias", "norm2.shift"),
        ("mlp.up.weight", "ff.layers.0.weight"),
        ("mlp.up.bias", "ff.layers.0.bias"),
        ("mlp.down.weight", "ff.layers.2.weight"),
        ("mlp.down.bias", "ff.layers.2.bias"),
    ),
    optional=(".qkv.bias",),
    head_always=True,
)


def recognise(path: Path) -> bool:
    """Say whether a file is a state dict with these names."""
    if not path.is_file() or not looks_pickled(path):
        return False
    try:
        return "tok_emb.weight" in read_state_dict(path)
    except ClearheadError:
        return False


def open_book(path: Path, vocab_size: int | None = None, *, n_heads: int | None = None) -> Source:
    """Open the state dict, alone or beside an optimiser's.

    Args:
        path: The file.
        vocab_size: Cuts a padded vocabulary; to GPT-2's by default.
        n_heads: The number of heads, which the file does not tell; that of GPT-2 by default.

    Raises:
        ClearheadError: It is damaged, or its parts do not fit together.
    """
    tensors = {
        name: one for name, one in read_state_dict(path).items() if not name.endswith(".att.mask")
    }
    for name in ("tok_emb.weight", "pos_emb.weight", "out_head.weight"):
        if name not in tensors or tensors[name].ndim != 2:
            raise ClearheadError(f"{path}: its tensors are not those of its config: missing {name}")
    embedding = tensors["tok_emb.weight"]
    numbers = [name.split(".")[1] for name in tensors if name.startswith("trf_blocks.")]
    vocabulary, d_model = embedding.shape
    config = GPTConfig(
        vocab_size=vocabulary,
        context_length=len(tensors["pos_emb.weight"]),
        d_model=d_model,
        n_heads=heads_of(d_model, n_heads, path),
        n_layers=1 + max((int(one) for one in numbers if one.isdecimal()), default=0),
        dropout=0.0,
        qkv_bias="trf_blocks.0.att.W_query.bias" in tensors,
        tied_head=torch.equal(embedding, tensors["out_head.weight"]),
    )
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


def write_book(source: Source, folder: Path, dtype: str) -> list[str]:
    """Write model.pth; a model without biases gets zeros, for the book's always has them."""
    tensors = {
        name: part.contiguous()
        for weight in TABLE.weights(source.config)
        for name, part in zip(
            weight.theirs, parts(source, weight, DTYPES[dtype.upper()]), strict=True
        )
    }
    if source.config.tied_head:
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    torch.save(tensors, folder / "model.pth")
    return []
