"""LoRA adapters as PEFT stores them: its config, its names; the layouts are the paper's."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from reprlib import repr as short
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from clearhead.checkpoint.checksums import read_json, write_json
from clearhead.checkpoint.formats.huggingface import (
    ADAPTER_CONFIG,
    STORED,
    TABLE,
    open_huggingface,
)
from clearhead.checkpoint.formats.source import several
from clearhead.checkpoint.tensors import DTYPES, Entry, TensorFile, write_tensors
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD = "head.weight"
"""Our name of the head, which goes with an adapter that made a classifier."""
_PREFIX = "base_model.model."
_SCORE = "score"  # what transformers calls a classifier's head
_NOTHING: tuple[object, ...] = (None, False, "none", "", [], {})
_FIXED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "init_lora_weights": (True, False, "gaussian"),  # others, as pissa, change the base too
}
_WITHOUT_EFFECT = frozenset(  # on an adapter that has its weights
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
_READ = frozenset({*_FIXED, "lora_alpha", "lora_dropout", "modules_to_save", "r", "target_modules"})
_MOST = 1e9
_MODULES = {  # our name within attention or mlp: theirs within a block
    ours.split(".")[1]: str(theirs).removesuffix(".weight")
    for ours, theirs in TABLE.in_block
    if ours.startswith(("attention.", "mlp.")) and ours.endswith(".weight")
}


@dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says."""

    rank: int
    """Inner width R of the factors."""
    alpha: float
    """Their product is added alpha / rank times."""
    targets: tuple[str, ...]
    """Our names of the layers in each block: qkv, out_proj, up, down."""
    dropout: float
    """Probability of dropping an input of the factors in training."""
    with_head: bool = False
    """Whether a classifier's whole head goes with it."""


@dataclass(frozen=True)
class Factor:
    """One tensor of an adapter."""

    ours: str
    """The layer's name in `GPT`, and a or b: `blocks.0.attention.qkv.a`."""
    theirs: str
    """Its name in the file."""
    shape: tuple[int, int]
    """[R, in] for a, [out, R] for b, there and here; the head's own."""


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
    """The base's shape."""
    settings: AdapterSettings
    """The adapter's."""
    dtype: torch.dtype
    """The type that holds the base's weights and the adapter's exactly."""
    factors: list[Factor]
    """Its tensors."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        where = folder / ADAPTER_CONFIG
        values = read_json(where)
        self.base = base or _base(values.get("base_model_name_or_path"), folder)
        with open_huggingface(self.base, with_tokenizer=False) as source:
            self.config, dtype = source.config, source.dtype
        self.settings = _settings(values, self.config, where)
        self._file = TensorFile(folder / ADAPTER_WEIGHTS)
        with ExitStack() as stack:
            stack.enter_context(self._file)
            self.factors = _checked(self._file, self.config, self.settings)
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
        config: The base's shape.
        settings: The adapter's.
        tensors: The factors, by our names.
        base: The base's folder, which is noted.

    Raises:
        OSError: A file cannot be written.
    """
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": _task(config, settings),
            "modules_to_save": [_SCORE] if settings.with_head else None,
            "base_model_name_or_path": str(base.resolve()),
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "lora_dropout": settings.dropout,
            "target_modules": [_MODULES[target] for target in settings.targets],
            "fan_in_fan_out": True,  # the base's layers are Conv1D there
            "bias": "none",
            "inference_mode": True,
        },
    )
    factors = {one.theirs: one.ours for one in _factors(config, settings)}
    header = {theirs: Entry.of(tensors[ours]) for theirs, ours in factors.items()}
    write_tensors(folder / ADAPTER_WEIGHTS, header, lambda theirs: tensors[factors[theirs]])


def _task(config: GPTConfig, settings: AdapterSettings) -> str | None:
    """Return PEFT's word for what it is for; by SEQ_CLS it would look for a head of its own."""
    if settings.with_head:
        return "SEQ_CLS"
    return None if config.labels else "CAUSAL_LM"


def _base(named: object, folder: Path) -> Path:
    """Return the base's folder: absolute, or relative to the adapter's."""
    where = folder / ADAPTER_CONFIG
    if not isinstance(named, str) or not named:
        raise ClearheadError(f"{where}: base_model_name_or_path names no folder")
    try:
        is_there = (folder / named).is_dir()
    except OSError:  # no system has names like that
        is_there = False
    if not is_there:
        raise ClearheadError(
            f"{where}: its base {short(named)} is no folder; if it lies elsewhere now, make a "
            "whole model with clearhead merge --base DIR"
        )
    return folder / named


def _settings(values: Mapping[str, Any], config: GPTConfig, where: Path) -> AdapterSettings:
    """Read adapter_config.json; what is more than plain LoRA is refused by name."""
    for key, value in values.items():
        if key not in _READ | _WITHOUT_EFFECT and value not in _NOTHING:
            raise ClearheadError(
                f"{where}: {key[:80]!r} is {short(value)}; clearhead has plain LoRA only"
            )
    for key, allowed in _FIXED.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ClearheadError(
                f"{where}: {key} is {short(values[key])}; clearhead has plain LoRA only"
            )
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)  # what PEFT leaves out
    dropout = values.get("lora_dropout", 0.0)
    if type(rank) is not int or not 1 <= rank < 2**31:
        raise ClearheadError(f"{where}: r is {short(rank)}; it must be 1 or more")
    for key, value in (("lora_alpha", alpha), ("lora_dropout", dropout)):
        if type(value) not in (int, float) or not 0 <= value < _MOST:
            raise ClearheadError(f"{where}: {key} is {short(value)}; it must be a number")
    targets = _targets(values.get("target_modules"), config, where)
    with_head = _saves_head(values.get("modules_to_save"), config, where)
    return AdapterSettings(rank, float(alpha), targets, float(dropout), with_head)


def _saves_head(named: object, config: GPTConfig, where: Path) -> bool:
    """Say whether the head goes with the adapter, which only a classifier's can."""
    if named in _NOTHING:
        return False
    if not isinstance(named, list) or not set(map(str, named)) <= {_SCORE, "classifier"}:
        raise ClearheadError(
            f"{where}: modules_to_save is {short(named)}; clearhead saves a classifier's head only"
        )
    if not config.labels:
        raise ClearheadError(f"{where}: modules_to_save names a head, and its base has no labels")
    return _SCORE in named


def _targets(named: object, config: GPTConfig, where: Path) -> tuple[str, ...]:
    """Return our names of the layers that are meant, by PEFT's rule: a name or its last parts."""
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise ClearheadError(
            f"{where}: target_modules is {short(named)}; clearhead reads a list of names"
        )
    wanted, targets = set(named), []
    for target, module in _MODULES.items():
        paths = [TABLE.block.format(layer=layer) + module for layer in range(config.n_layers)]
        n_meant = sum(not wanted.isdisjoint(_endings(path)) for path in paths)
        if 0 < n_meant < len(paths):
            raise ClearheadError(
                f"{where}: target_modules name {module} in {n_meant} of {len(paths)} blocks; "
                "clearhead has adapters in all blocks only"
            )
        if n_meant:
            targets.append(target)
    if not targets:
        raise ClearheadError(
            f"{where}: target_modules are {short(named)}; clearhead has adapters on "
            f"{', '.join(_MODULES.values())} only"
        )
    return tuple(targets)


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _factors(config: GPTConfig, settings: AdapterSettings) -> Iterator[Factor]:
    """Yield every tensor of an adapter."""
    for weight in TABLE.weights(config):
        ours = weight.ours.removesuffix(".weight")
        if weight.transposed and ours.rpartition(".")[2] in settings.targets:
            theirs = _PREFIX + weight.theirs[0].removesuffix(".weight")
            n_in, n_out = weight.shape
            yield Factor(f"{ours}.a", f"{theirs}.lora_A.weight", (settings.rank, n_in))
            yield Factor(f"{ours}.b", f"{theirs}.lora_B.weight", (n_out, settings.rank))
    if settings.with_head:
        shape = (config.n_outputs, config.d_model)
        yield Factor(HEAD, f"{_PREFIX}{_SCORE}.weight", shape)


def _checked(file: TensorFile, config: GPTConfig, settings: AdapterSettings) -> list[Factor]:
    """Return the tensors of a file, each of which is there in its shape, and no other."""
    factors = list(_factors(config, settings))
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
