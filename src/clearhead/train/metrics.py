"""The record of a run: metrics.jsonl, and the picture of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import ClearheadError
from clearhead.files import atomic_write


class MetricsLog:
    """Lines of JSON in `RUN/metrics.jsonl`, one a step and one an evaluation."""

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; it is in the system's hands when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """Make the lines written so far durable."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines; a last line that a crash cut short is left out.

        Raises:
            ClearheadError: A whole line is not JSON.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        try:
            return [json.loads(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise ClearheadError(f"{self.path} is damaged: {error}; move it away") from error

    def rewind(self, step: int) -> None:
        """Drop what was recorded at or after `step`: it is about to be computed again."""
        kept = [record for record in self.read() if record["step"] < step]
        with atomic_write(self.path) as file:
            for record in kept:
                file.write((json.dumps(record) + "\n").encode())


def plot_metrics(run: Path, unit: str = "nats a token") -> Path:
    """Draw `RUN/loss.png` from `RUN/metrics.jsonl`: training and validation loss by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = MetricsLog(run).read()
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [r for r in records if "val_loss" in r]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if training:
        axes.plot(*zip(*training, strict=True), color="#9ecae1", linewidth=1, label="training")
    if held_out:
        steps, losses = [r["step"] for r in held_out], [r["val_loss"] for r in held_out]
        axes.plot(steps, losses, "o-", color="#d95f02", markersize=4, label="held out")
        axes.annotate(
            _measured(held_out[-1], unit),
            (steps[-1], losses[-1]),
            xytext=(0, 18),
            textcoords="offset points",
            ha="right",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    axes.set_title(f"{run.name}: loss over the run")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if records:
        axes.legend(frameon=False, loc="upper right")
    path = run / "loss.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


def _measured(record: Mapping[str, Any], unit: str) -> str:
    lines = [f"{record['val_loss']:.3f} {unit}"]
    if "bits_per_byte" in record:
        lines.append(f"{record['bits_per_byte']:.3f} bits a byte")
    if "accuracy" in record:
        lines.append(f"{record['accuracy']:.1%} right")
    return "\n".join(lines)
