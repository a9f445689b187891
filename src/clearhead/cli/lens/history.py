"""`clearhead lens history`: how what the heads look for came about over a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.lens.common import name, picture
from clearhead.cli.parse import Flag, parse
from clearhead.errors import ClearheadError
from clearhead.lens import HEAD_SCORES, Curve, save_curves
from clearhead.train import MetricsLog


@dataclass(frozen=True)
class Arguments:
    """Show how heads came to look for repetitions, in a run trained with --measure-every."""

    directory: Positional[Path]
    """The folder of a run."""
    score: str = "induction"
    """What to follow: induction, previous or duplicate."""
    heads: int = 4
    """How many heads to show, those that end strongest."""
    plot: Path | None = None
    """Draw the curves into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def history(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    if parsed.score not in HEAD_SCORES:
        raise ClearheadError(f"there is no score {parsed.score!r}; valid: {', '.join(HEAD_SCORES)}")
    records = [one for one in MetricsLog(parsed.directory).read() if parsed.score in one]
    if not records:
        raise ClearheadError(
            f"{parsed.directory} has no measurements of its heads; train it with --measure-every "
            "STEPS"
        )
    steps = [int(one["step"]) for one in records]
    scores = torch.tensor([one[parsed.score] for one in records])  # [step, L, H]
    last = scores[-1].flatten()
    chosen = last.argsort(descending=True)[: parsed.heads].tolist()
    curves = [
        Curve(name(*divmod(at, scores.shape[2])), steps, scores.flatten(1)[:, at].tolist())
        for at in chosen
    ]
    if parsed.json:
        document: dict[str, Any] = {"steps": steps, "score": parsed.score}
        show.as_json(document | {"heads": {one.label: list(one.values) for one in curves}})
        return 0
    rows = [(step, *(one.values[at] for one in curves)) for at, step in enumerate(steps)]
    show.table(f"{parsed.score}: attention by step", ("step", *(c.label for c in curves)), rows)
    if path is not None:
        save_curves(path, curves, f"{parsed.score} over the run", "attention")
        show.facts({"\npicture": path})
    return 0
