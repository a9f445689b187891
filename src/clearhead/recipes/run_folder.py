"""A run's folder: made ours, and told what the run is made of."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version
from typing import Any

import torch

from clearhead import config
from clearhead.errors import ClearheadError
from clearhead.files import atomic_write
from clearhead.train import TrainConfig

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "out",
        "evaluate_every",
        "evaluation_tokens",
        "keep_checkpoints",
        "measure_every",
        "micro_batch_size",
        "patience",
    }
)
_PACKAGES = ("clearhead", "torch", "numpy", "tokenizers", "tiktoken", "safetensors")


def claim(run: Path, settings: TrainConfig, resume: bool, *, prepared: Sequence[str] = ()) -> None:
    """Make the run's folder ours.

    Args:
        run: The folder.
        settings: What the run is told to do; written into it if it is new.
        resume: Whether a run that is there already is meant.
        prepared: Subfolders that are made anew when the settings of a run without a checkpoint
            have changed.

    Raises:
        ClearheadError: It is something else's, or a run that was begun with other settings.
    """
    stored = run / "config.toml"
    try:
        if not stored.exists() and run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise ClearheadError(f"{run} exists and is no run of clearhead; choose another --out")
        changed: list[str] = []
        if stored.exists():
            before = config.to_dict(load_settings(type(settings), run))
            changed = _changes(before, config.to_dict(settings))
        if (run / "checkpoints").exists():
            _check_same_run(run, changed, resume)
            return
        for name in prepared if changed else ():
            shutil.rmtree(run / name, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
        config.write_toml(stored, settings)
    except OSError as error:
        raise ClearheadError(f"cannot make the run's folder {run}: {error.strerror}") from error


def load_settings(kind: type[config.C], run: Path) -> config.C:
    """Return what a run was told to do.

    Raises:
        ClearheadError: It is a run of another kind, or config.toml is damaged.
    """
    return config.load(kind, run / "config.toml")


def write_run(run: Path, settings: TrainConfig) -> None:
    """Write down what the run is made of: its full config, and what it runs on."""
    config.write_toml(run / "config.toml", settings)
    environment = {
        "command": sys.argv,
        "python": python_version(),
        "platform": platform(),
        "packages": {name: version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
    }
    with atomic_write(run / "environment.json") as file:
        file.write(json.dumps(environment, indent=2).encode())


def _check_same_run(run: Path, changed: list[str], resume: bool) -> None:
    if not resume:
        raise ClearheadError(
            f"{run} holds another run; go on with it by --resume, or choose another --out"
        )
    if changed:
        raise ClearheadError(
            f"the run in {run} was begun with other settings: {', '.join(changed)}; "
            "leave them as they were, or choose another --out"
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which settings differ; `auto` fits whatever it was resolved to."""
    changed = []
    for key, value in now.items():
        old, name = before[key], prefix + key
        if name == "model.vocab_size":
            continue  # it follows the tokenizer
        if isinstance(value, Mapping):
            changed += _changes(old, value, f"{name}.")
        elif old != value and "auto" not in (old, value) and name not in MAY_CHANGE_ON_RESUME:
            changed.append(f"{name} was {old}, not {value}")
    return changed
