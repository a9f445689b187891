"""What a model went through, in words."""

from collections.abc import Sequence
from typing import Any

from clearhead.recipes.ledger import Stage


def change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str | None:
    """Say how an evaluation changed over a stage."""
    if before is None or after is None:
        return None
    words = f"{before['val_loss']:.4f} to {after['val_loss']:.4f} {after['unit']}"
    if "accuracy" in before and "accuracy" in after:
        words += f", {before['accuracy']:.1%} to {after['accuracy']:.1%} right"
    return words


def stage_lines(stages: Sequence[Stage]) -> list[str]:
    """Say in a line for each stage what it began with, learnt from, gained and cost."""
    lines = []
    for number, stage in enumerate(stages, start=1):
        data = ", ".join(f"{one['name']} ({one['rows']:,} rows)" for one in stage.data)
        begun = "random weights" if stage.started_from is None else stage.started_from["path"]
        length = "not ended" if stage.steps is None else f"{stage.steps:,} steps"
        parts = [f"{number} {stage.kind}: {data}, {length}, from {begun}"]
        if held_out := change(stage.before, stage.after) or _end(stage):
            parts.append(f"held out {held_out}")
        if text := change(stage.text_before, stage.text_after):
            parts.append(f"plain text {text}")
        lines.append("; ".join(parts))
    return lines


def _end(stage: Stage) -> str | None:
    after = stage.after
    return None if after is None else f"{after['val_loss']:.4f} {after['unit']}"
