"""The checkpoints of a run: RUN/checkpoints/step-00000123, and RUN/best.json."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clearhead.checkpoint.checksums import read_json, write_json
from clearhead.checkpoint.formats.huggingface import CONFIG, is_adapter
from clearhead.errors import ClearheadError
from clearhead.files import fsync_dir

_CHECKPOINTS = "checkpoints"
_BEST = "best.json"
_STEP = re.compile(r"step-(\d{8,18})")


@dataclass(frozen=True)
class Best:
    """Which of a run's checkpoints has the lowest validation loss."""

    step: int
    """Its step."""
    val_loss: float
    """The loss, in nats a token."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / _CHECKPOINTS / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step that a checkpoint's name tells, None if it tells none."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def list_checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first. A folder gets its name only once it is whole."""
    folder = run / _CHECKPOINTS
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = {path: step_of(path) for path in found}
    return sorted((path for path in found if steps[path] is not None), key=lambda p: steps[p] or 0)


def mark_best(run: Path, step: int | None, val_loss: float | None) -> None:
    """Write down, atomically, which step's checkpoint is the run's best; None: none is yet."""
    if step is None:
        (run / _BEST).unlink(missing_ok=True)
    else:
        write_json(run / _BEST, {"step": step, "val_loss": val_loss})


def read_best(run: Path) -> Best | None:
    """Return the run's best checkpoint, None before the first evaluation.

    Raises:
        ClearheadError: best.json is damaged.
    """
    path = run / _BEST
    if not path.exists():
        return None
    values = read_json(path)
    match values:
        case {"step": int(step), "val_loss": float() | int() as val_loss} if 0 <= step < 10**18:
            return Best(step, val_loss)
    raise ClearheadError(f"{path} is damaged: it must hold a step and a val_loss; delete it")


def resolve(path: Path, which: Literal["newest", "best"] = "newest") -> Path:
    """Return the checkpoint that a path means: itself, or one of the run that it is.

    Args:
        path: A checkpoint, or a run's folder.
        which: Which of a run's checkpoints.

    Raises:
        ClearheadError: There is none; the message says what was found instead.
    """
    if not path.exists():
        raise ClearheadError(f"{path} does not exist; give the folder of a run or of a checkpoint")
    if not path.is_dir():
        raise ClearheadError(f"{path} is a file; give the folder of a run or of a checkpoint")
    if (path / CONFIG).exists() or is_adapter(path):
        return path
    if not (path / _CHECKPOINTS).is_dir():
        raise ClearheadError(
            f"{path} is neither a checkpoint ({CONFIG}) nor a run ({_CHECKPOINTS}/): "
            f"it holds {_content(path)}"
        )
    checkpoints = list_checkpoints(path)
    if not checkpoints:
        raise ClearheadError(f"{path} is a run that has saved no checkpoint yet; train it further")
    return checkpoints[-1] if which == "newest" else _best(path, checkpoints)


def prune(run: Path, keep: int, best_step: int | None) -> None:
    """Delete a run's checkpoints, but for the newest `keep` (at least one) and the best.

    A crash in between leaves whole checkpoints and what `remove_leftovers` takes away.
    """
    for path in list_checkpoints(run)[: -max(keep, 1)]:
        if step_of(path) != best_step:
            doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.rename(doomed)
            fsync_dir(path.parent)
            shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Delete what a killed process left half written; call it where no other writes to the run."""
    for path in [*run.glob(".*.tmp"), *(run / _CHECKPOINTS).glob(".*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _best(run: Path, checkpoints: list[Path]) -> Path:
    best = read_best(run)
    if best is None:
        raise ClearheadError(
            f"{run} has not been evaluated yet, so none of its checkpoints is best"
        )
    path = checkpoint_path(run, best.step)
    if path not in checkpoints:
        raise ClearheadError(f"{run / _BEST} names {path.name}, which is gone; take another")
    return path


def _content(folder: Path) -> str:
    """List a few of the names in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(repr(name) for name in names[:4]) or "nothing"
    return f"{shown}, …" if len(names) > 4 else shown
