"""What PEFT's adapter_config.json says, and which of it is read here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from clearhead.checkpoint.formats.huggingface import ADAPTER_CONFIG, TABLE
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

_SAVED = ("score", "classifier")  # PEFT names both for any classifier; a GPT-2 has the first
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
MODULES = {  # our name within attention or mlp: theirs within a block
    ours.split(".")[1]: str(theirs).removesuffix(".weight")
    for ours, theirs in TABLE.in_block
    if ours.startswith(("attention.", "mlp.")) and ours.endswith(".weight")
}
"""PEFT's names of the layers within a block, by our targets."""


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


def read_settings(values: Mapping[str, Any], config: GPTConfig, where: Path) -> AdapterSettings:
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
    return AdapterSettings(rank, float(alpha), targets, float(dropout))


def _targets(named: object, config: GPTConfig, where: Path) -> tuple[str, ...]:
    """Return our names of the layers that are meant, by PEFT's rule: a name or its last parts."""
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise ClearheadError(
            f"{where}: target_modules is {short(named)}; clearhead reads a list of names"
        )
    wanted, targets = set(named), []
    for target, module in MODULES.items():
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
            f"{', '.join(MODULES.values())} only"
        )
    return tuple(targets)


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def learns_head(saved: object, where: Path) -> bool:
    """Say whether the file has a classifier's head, by the layers that PEFT saved whole."""
    if saved in _NOTHING:
        return False
    if isinstance(saved, list) and "score" in saved and all(one in _SAVED for one in saved):
        return True
    raise ClearheadError(
        f"{where}: 'modules_to_save' is {short(saved)}; clearhead saves a classifier's head, "
        "['score'], only"
    )


def base_folder(named: object, folder: Path) -> Path:
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
