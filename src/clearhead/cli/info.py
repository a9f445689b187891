"""`clearhead info`: what a checkpoint or a run holds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from clearhead import checkpoint
from clearhead.checkpoint import AdapterInfo, Best, CheckpointInfo
from clearhead.checkpoint.checksums import is_sealed
from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.cli.stages import stage_lines
from clearhead.errors import ClearheadError
from clearhead.recipes.ledger import read_ledger
from clearhead.train import MetricsLog

_MISTAKE = 2


@dataclass(frozen=True)
class Arguments:
    """Tell what a checkpoint or a run holds, and whether its files are whole."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint too."""
    json: Flag = False
    """Print the result as one JSON object."""


def info(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status: 2 if a file is damaged."""
    parsed = parse(Arguments, arguments, prog)
    described = checkpoint.describe(parsed.directory)
    damage = _damage(described.path)
    run = _run(parsed.directory) if described.path != parsed.directory else None
    stages = read_ledger(described.path)
    best = checkpoint.read_best(parsed.directory) if run else _best_before(described)
    report: dict[str, Any] = {
        "checkpoint": str(described.path),
        "step": described.step,
        "parameters": described.n_parameters,
        "dtype": described.dtype,
        "tokenizer": described.tokenizer,
        "config": asdict(described.config),
        "adapter": _adapter(described.adapter),
        "best": asdict(best) if best else None,
        "files": described.files,
        "checksums": damage if damage else "hold" if is_sealed(described.path) else "none",
        "stages": [asdict(stage) for stage in stages],
        "run": run,
    }
    if parsed.json:
        show.as_json(report)
    else:
        _show(report, described)
        for words in stage_lines(stages):
            show.line(show.result(), words)
    if damage:
        show.error(damage)
    return _MISTAKE if damage else 0


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, None if nothing is or none can tell."""
    if not is_sealed(folder):
        return None
    try:
        checkpoint.verify(folder)
    except ClearheadError as error:
        return str(error)
    return None


def _adapter(adapter: AdapterInfo | None) -> dict[str, Any] | None:
    if adapter is None:
        return None
    settings = {**asdict(adapter.settings), "parameters": adapter.n_parameters}
    return {"base": str(adapter.base), **settings}


def _best_before(described: CheckpointInfo) -> Best | None:
    """Return the best evaluation up to the moment when a checkpoint was saved."""
    match described.documents.get("trainer"):
        case {"best_step": int(step), "best_loss": float(loss)}:
            return Best(step, loss)
    return None


def _run(folder: Path) -> dict[str, Any]:
    """Return what a run's folder tells beside its newest checkpoint."""
    records = MetricsLog(folder).read()
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "val_loss" in record]
    return {
        "checkpoints": [str(path) for path in checkpoint.list_checkpoints(folder)],
        "last_step": steps[-1] if steps else None,
        "last_evaluation": evaluations[-1] if evaluations else None,
    }


def _show(report: dict[str, Any], described: CheckpointInfo) -> None:
    run, best, adapter = report["run"], report["best"], report["adapter"]
    unit = "nats a text" if described.config.labels else "nats a token"
    show.facts(
        {
            "checkpoint": report["checkpoint"],
            "step": report["step"],
            "parameters": f"{report['parameters']:,} ({report['dtype']})",
            "adapter": adapter
            and f"rank {adapter['rank']} on {', '.join(adapter['targets'])}; "
            f"{adapter['parameters']:,} weights beside those of {adapter['base']}",
            "tokenizer": report["tokenizer"],
            "labels": ", ".join(described.config.labels) or None,
            "model": ", ".join(f"{name}={value}" for name, value in report["config"].items()),
            "best so far": f"step {best['step']}, {best['val_loss']:.4f} {unit}" if best else None,
            "checksums": {"hold": "all hold", "none": "none; not saved by clearhead"}.get(
                report["checksums"], "a file is damaged"
            ),
        }
    )
    if run is not None:
        _show_run(run, unit)
    show.table("files", ("name", "bytes"), list(described.files.items()))


def _show_run(run: dict[str, Any], unit: str) -> None:
    last, measured = run["last_step"], run["last_evaluation"]
    evaluation, step = None, None
    if measured:
        evaluation = f"step {measured['step']}, {measured['val_loss']:.4f} {unit}"
        if "bits_per_byte" in measured:
            evaluation += f", {measured['bits_per_byte']:.4f} bits a byte"
        if "accuracy" in measured:
            evaluation += f", {measured['accuracy']:.1%} right"
    if last:
        speed = f"{last['tokens_per_second']:,.0f} tokens/s"
        step = f"step {last['step']}, loss {last['loss']:.4f}, {speed}"
    names = ", ".join(Path(path).name for path in run["checkpoints"])
    show.facts({"checkpoints": names, "last evaluation": evaluation, "last step": step})
