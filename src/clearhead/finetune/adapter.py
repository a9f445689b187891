"""LoRA adapters on disk: PEFT's folder, sealed as a checkpoint is."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from clearhead import checkpoint
from clearhead.checkpoint.checksums import OWN, digest, is_sealed
from clearhead.checkpoint.formats.huggingface import ADAPTER_CONFIG, TOKENIZER, open_huggingface
from clearhead.checkpoint.formats.peft import (
    ADAPTER_WEIGHTS,
    HEAD,
    AdapterSettings,
    AdapterSource,
    write_adapter,
)
from clearhead.checkpoint.formats.table import our_weights
from clearhead.errors import ClearheadError
from clearhead.finetune.lora import LoRAConfig, add_lora, lora_config, lora_parameters
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

_BASE = "base"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def save_adapter(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    base: Path,
    tensors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    documents: Mapping[str, Mapping[str, Any]] = _NOTHING,
) -> None:
    """Save the adapter in use as a folder that PEFT loads too, wholly or not at all.

    A head that is learnt with it, as a classifier's is, goes along.

    What the base's weights are is noted in clearhead/base.json.

    Args:
        folder: The folder to make; it must not exist.
        model: The model with the adapter.
        tokenizer: The one that it was trained with.
        base: The checkpoint with the model's other weights.
        tensors: As in `checkpoint.save`.
        documents: As in `checkpoint.save`.

    Raises:
        ClearheadError: No adapter is in use, the base is of another shape, the folder exists, the
            tokenizer is another model's, or the files cannot be written. Nothing of the attempt is
            left.
    """
    config = lora_config(model)
    if config is None:
        raise ClearheadError("no adapter of the model is in use; name it to use_adapter first")
    checkpoint.check_tokenizer(folder, model.config, tokenizer)
    with_head = model.head.weight.requires_grad
    settings = AdapterSettings(config.rank, config.alpha, config.targets, config.dropout, with_head)
    learnt = {**lora_parameters(model), **({HEAD: model.head.weight} if with_head else {})}

    def write(temporary: Path) -> None:
        write_adapter(temporary, model.config, settings, learnt, base)
        save_tokenizer(tokenizer, temporary)

    digests = _weight_digests(base, model.config)
    noted = {"path": str(base.resolve()), "sha256": digests}
    checkpoint.save_folder(folder, write, tensors=tensors, documents={**documents, _BASE: noted})


def load_adapter(
    folder: Path,
    *,
    base: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> tuple[GPT, Tokenizer]:
    """Load a model with an adapter of it in use, in evaluation mode, and its tokenizer.

    Args:
        folder: The adapter's, of our making or PEFT's.
        base: The model's folder; by default the one that adapter_config.json names, absolute or
            relative to its own.
        device: Where the weights go.
        dtype: What they become; by default what holds both the model's and the adapter's.
        verify: Whether to compare the files with their checksums, and the base's weights with
            those that were noted when the adapter was saved.

    Raises:
        ClearheadError: A file is missing or damaged, the adapter is more than plain LoRA, its base
            is another one, or the files do not fit together.
    """
    if verify and is_sealed(folder):
        checkpoint.verify(folder, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER)
    with AdapterSource(folder, base) as source:
        if verify and (folder / OWN / f"{_BASE}.json").is_file():
            _check_base(folder, source)
        tokenizer = load_tokenizer(folder if (folder / TOKENIZER[0]).exists() else source.base)
        checkpoint.check_tokenizer(folder, source.config, tokenizer)
        model = checkpoint.load_model(
            source.base, device=device, dtype=dtype or source.dtype, verify=verify
        )
        try:
            with torch.random.fork_rng(devices=[]):
                one = source.settings
                add_lora(model, LoRAConfig(one.rank, one.alpha, one.targets, one.dropout))
        except ClearheadError as error:
            raise ClearheadError(f"{folder / ADAPTER_CONFIG}: {error}") from error
        model.head.weight.requires_grad_(source.settings.with_head)
        parameters = {**lora_parameters(model), HEAD: model.head.weight}
        with torch.no_grad():
            for factor in source.factors:
                parameters[factor.ours].copy_(source.read(factor))
    return model, tokenizer


def _check_base(folder: Path, source: AdapterSource) -> None:
    noted = checkpoint.load_document(folder, _BASE).get("sha256")
    if noted != _weight_digests(source.base, source.config):
        raise ClearheadError(
            f"{source.base} does not hold the weights that {folder} was trained on: their SHA-256 "
            "differs"
        )


def _weight_digests(base: Path, config: GPTConfig) -> dict[str, str]:
    """Return the SHA-256 of each file of a model's weights, by its name.

    Args:
        base: The model's folder.
        config: The shape that it has to have.

    Raises:
        ClearheadError: It is no checkpoint, damaged, or of another shape.
    """
    with open_huggingface(base, with_tokenizer=False) as source:
        found, files = source.config, source.files[1:]  # the first is the config
    if dict(our_weights(found)) != dict(our_weights(config)):
        raise ClearheadError(f"{base} is of another shape than the model that the adapter is on")
    try:
        return {one.name: digest(one) for one in files}
    except OSError as error:
        raise ClearheadError(f"{base} cannot be read: {error.strerror}") from error
