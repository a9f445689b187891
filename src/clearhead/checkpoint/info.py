"""What a checkpoint holds, without loading it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clearhead.checkpoint.checksums import CHECKSUMS, OWN, read_json
from clearhead.checkpoint.formats.huggingface import TOKENIZER, is_adapter, open_huggingface
from clearhead.checkpoint.formats.peft import HEAD, AdapterSettings, AdapterSource
from clearhead.checkpoint.formats.table import n_parameters
from clearhead.checkpoint.quantized import quantization_of, quantized_config
from clearhead.checkpoint.runs import resolve, step_of
from clearhead.checkpoint.tensors import Entry
from clearhead.model import GPTConfig
from clearhead.tokenizer import load_tokenizer


@dataclass(frozen=True)
class AdapterInfo:
    """What is told of an adapter beside the model that it belongs to."""

    base: Path
    """That model's folder."""
    settings: AdapterSettings
    """Its rank, and on which layers it is."""
    n_parameters: int
    """How many weights it has, a classifier's head among them."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What `clearhead info` shows of a checkpoint."""

    path: Path
    """The checkpoint's folder."""
    config: GPTConfig
    """The model's shape; of an adapter, that of the model that it belongs to."""
    n_parameters: int
    """How many weights it has, a tied head once, and an adapter's beside its model's."""
    dtype: str
    """Their type as safetensors writes it, "F32" for example; of quantised ones the bits."""
    tokenizer: str
    """The tokenizer's name."""
    step: int | None
    """The training step that it was saved at, where its name tells."""
    files: dict[str, int]
    """Every file's size in bytes."""
    documents: dict[str, dict[str, Any]]
    """What the trainer wrote beside the weights, by name."""
    adapter: AdapterInfo | None = None
    """What it adds to another model; None where it is a whole one."""


def describe(path: Path) -> CheckpointInfo:
    """Describe a checkpoint, or the newest one of a run, from its headers alone.

    Raises:
        ClearheadError: It is no checkpoint, or what is read of it is damaged.
    """
    folder = resolve(path)
    adapter, beside, quantization, dtype = None, 0, None, torch.float32
    if is_adapter(folder):
        with AdapterSource(folder) as opened:
            config, dtype = opened.config, opened.dtype
            adapter = AdapterInfo(opened.base, opened.settings, opened.n_parameters())
            beside = sum(math.prod(one.shape) for one in opened.factors if one.ours != HEAD)
    elif quantization := quantization_of(folder):
        config = quantized_config(folder)
    else:
        with open_huggingface(folder, with_tokenizer=False) as source:
            config, dtype = source.config, source.dtype
    has_own = (folder / TOKENIZER[0]).exists()
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    documents = [one for one in sorted((folder / OWN).glob("*.json")) if one != folder / CHECKSUMS]
    return CheckpointInfo(
        path=folder,
        config=config,
        n_parameters=n_parameters(config) + beside,
        dtype=f"{quantization.bits} bits, groups of {quantization.group}"
        if quantization
        else Entry.of(torch.empty(0, dtype=dtype)).dtype,
        tokenizer=load_tokenizer(folder if has_own or not adapter else adapter.base).name,
        step=step_of(folder),
        files={one.relative_to(folder).as_posix(): one.stat().st_size for one in files},
        documents={one.stem: read_json(one) for one in documents},
        adapter=adapter,
    )
