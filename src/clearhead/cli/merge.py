"""`clearhead merge`: an adapter and its model become one checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.parse import Flag, parse
from clearhead.recipes.merge import merge_checkpoint


@dataclass(frozen=True)
class Arguments:
    """Make a whole checkpoint of an adapter and the model that it belongs to.

    The merged model is compared with the live adapter; it is written only if they agree.
    """

    directory: Positional[Path]
    """The adapter's folder, of clearhead's or PEFT's making, or the run that learnt it."""
    out: Path
    """The checkpoint to make."""
    which: Literal["newest", "best"] = "newest"
    """Which of a run's checkpoints."""
    base: Path | None = None
    """The model that the adapter belongs to, if it lies elsewhere now."""
    json: Flag = False
    """Print the result as one JSON object."""


def merge(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    made = merge_checkpoint(parsed.directory, parsed.out, which=parsed.which, base=parsed.base)
    agreement = made.agreement
    if parsed.json:
        paths = {"path": str(made.path), "adapter": str(made.adapter)}
        show.as_json({**paths, "agreement": asdict(agreement)})
        return 0
    show.facts(
        {
            "written to": made.path,
            "adapter": made.adapter,
            "compared": f"{agreement.ours}; {agreement.theirs}",
            "token sequences": f"{agreement.sequences} with {agreement.tokens:,} positions",
            "largest difference of a logit": f"{agreement.max_abs_logit_difference:.3g}",
            "largest logit": f"{agreement.largest_logit:.3g}",
            "same likeliest token": f"{agreement.top1_agreement:.4%}",
        }
    )
    return 0
