"""LoRA adapters as PEFT stores them: its config, its names; the layouts are the paper's.

A classifier's adapter has its whole head too, as one of PEFT's `modules_to_save`.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from reprlib import repr as short
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from clearhead.checkpoint.checksums import OWN, read_json, write_json
from clearhead.checkpoint.formats.huggingface import (
    ADAPTER_CONFIG,
    STORED,
    TABLE,
    open_huggingface,
)
from clearhead.checkpoint.formats.peft_config import (
    MODULES,
    AdapterSettings,
    base_folder,
    learns_head,
    read_settings,
)
from clearhead.checkpoint.formats.source import several
from clearhead.checkpoint.tensors import DTYPES, Entry, TensorFile, write_tensors
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD = "head.weight"
"""Our name of a classifier's head."""
NOTED = "base"
"""The document that notes what an adapter was trained on."""
_PREFIX = "base_model.model."
_SCORE = f"{_PREFIX}score.weight"


@dataclass(frozen=True)
class Factor:
    """One tensor of an adapter."""

    ours: str
    """The layer's name in `GPT`, and a or b: `blocks.0.attention.qkv.a`; or `head.weight`."""
    theirs: str
    """Its name in the file."""
    shape: tuple[int, int]
    """[R, in] for a, [out, R] for b, [labels, D] for a head; there and here."""


class AdapterSource:
    """An adapter opened for reading; a context manager that lets go of its file.

    Args:
        folder: PEFT's folder, or one of ours.
        base: The base's folder; by default the one that adapter_config.json names.

    Raises:
        ClearheadError: A file is missing or damaged, the adapter is more than plain LoRA, its base
            is not there, or its tensors do not fit.
    """

    base: Path
    """The folder of the model that it belongs to."""
    config: GPTConfig
    """The base's shape, with the adapter's labels if it has a head."""
    settings: AdapterSettings
    """The adapter's."""
    dtype: torch.dtype
    """The type that holds the base's weights and the adapter's exactly."""
    factors: list[Factor]
    """Its tensors."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        where = folder / ADAPTER_CONFIG
        values = read_json(where)
        self.base = base or base_folder(values.get("base_model_name_or_path"), folder)
        with open_huggingface(self.base, with_tokenizer=False) as source:
            self.config, dtype = source.config, source.dtype
        self.settings = read_settings(values, self.config, where)
        self._file = TensorFile(folder / ADAPTER_WEIGHTS)
        with ExitStack() as stack:
            stack.enter_context(self._file)
            has_head = learns_head(values.get("modules_to_save"), where)
            if has_head and not self.config.labels:
                self.config = _labelled(self.config, self._file, folder)
            self.factors = _checked(self._file, self.config, self.settings, has_head)
            stack.pop_all()
        stored = [DTYPES[entry.dtype] for entry in self._file.header.values()]
        self.dtype = reduce(torch.promote_types, stored, dtype)

    def read(self, factor: Factor) -> Tensor:
        """Return one of its tensors.

        Raises:
            ClearheadError: It cannot be read.
        """
        return self._file.read(factor.theirs)

    def n_parameters(self) -> int:
        """Count its weights."""
        return sum(one.shape[0] * one.shape[1] for one in self.factors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


def write_adapter(
    folder: Path,
    config: GPTConfig,
    settings: AdapterSettings,
    tensors: Mapping[str, Tensor],
    base: Path,
) -> None:
    """Write an adapter as PEFT does.

    Args:
        folder: An empty folder.
        config: The model's shape.
        settings: The adapter's.
        tensors: The factors, and the head if it is learnt, by our names.
        base: The base's folder, which is noted.

    Raises:
        OSError: A file cannot be written.
    """
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if config.labels else "CAUSAL_LM",
            "base_model_name_or_path": str(base.resolve()),
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "lora_dropout": settings.dropout,
            "target_modules": [MODULES[target] for target in settings.targets],
            "modules_to_save": ["score"] if HEAD in tensors else None,
            "fan_in_fan_out": True,  # the base's layers are Conv1D there
            "bias": "none",
            "inference_mode": True,
        },
    )
    factors = {one.theirs: one.ours for one in _factors(config, settings, HEAD in tensors)}
    header = {theirs: Entry.of(tensors[ours]) for theirs, ours in factors.items()}
    write_tensors(folder / ADAPTER_WEIGHTS, header, lambda theirs: tensors[factors[theirs]])


def _labelled(config: GPTConfig, file: TensorFile, folder: Path) -> GPTConfig:
    """Return a language model's shape with the head of a file; PEFT does not note the labels."""
    entry = file.header.get(_SCORE)
    if entry is None or len(entry.shape) != 2 or entry.shape[1] != config.d_model:
        found = "missing" if entry is None else f"{short(list(entry.shape))}"
        raise ClearheadError(
            f"{file.path}: {_SCORE} is {found}; it must be [labels, {config.d_model}]"
        )
    noted = folder / OWN / f"{NOTED}.json"
    labels = read_json(noted).get("labels") if noted.is_file() else None
    if labels is None:
        labels = [f"LABEL_{number}" for number in range(entry.shape[0])]
    if not isinstance(labels, list) or len(labels) != entry.shape[0] or len(labels) < 2:
        raise ClearheadError(f"{noted}: its labels are not those of the head of {entry.shape[0]}")
    return replace(config, labels=tuple(str(one) for one in labels), tied_head=False)


def _factors(config: GPTConfig, settings: AdapterSettings, has_head: bool) -> Iterator[Factor]:
    """Yield every tensor of an adapter."""
    if has_head:
        yield Factor(HEAD, _SCORE, (config.n_outputs, config.d_model))
    for weight in TABLE.weights(config):
        ours = weight.ours.removesuffix(".weight")
        if weight.transposed and ours.rpartition(".")[2] in settings.targets:
            theirs = _PREFIX + weight.theirs[0].removesuffix(".weight")
            n_in, n_out = weight.shape
            yield Factor(f"{ours}.a", f"{theirs}.lora_A.weight", (settings.rank, n_in))
            yield Factor(f"{ours}.b", f"{theirs}.lora_B.weight", (n_out, settings.rank))


def _checked(
    file: TensorFile, config: GPTConfig, settings: AdapterSettings, has_head: bool
) -> list[Factor]:
    """Return the tensors of a file, each of which is there in its shape, and no other."""
    factors = list(_factors(config, settings, has_head))
    wanted = {one.theirs for one in factors}
    missing = [one.theirs for one in factors if one.theirs not in file.header]
    surplus = [name for name in file.header if name not in wanted]
    if missing or surplus:
        told = [f"missing {several(missing)}"] if missing else []
        told += [f"surplus {several(surplus)}"] if surplus else []
        raise ClearheadError(
            f"{file.path}: its tensors are not those of {ADAPTER_CONFIG}: {'; '.join(told)}"
        )
    for one in factors:
        entry = file.header[one.theirs]
        if entry.shape != one.shape:
            raise ClearheadError(
                f"{file.path}: {one.theirs} is {short(list(entry.shape))}; {ADAPTER_CONFIG} and "
                f"the base ask for {list(one.shape)}"
            )
        if entry.dtype not in STORED:
            raise ClearheadError(
                f"{file.path}: {one.theirs} holds {entry.dtype}; clearhead reads "
                f"{', '.join(STORED)}"
            )
    return factors
