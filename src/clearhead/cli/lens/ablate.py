"""`clearhead lens ablate`: what the loss becomes without heads, over a data set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.lens.common import name, picture, show_panels, show_proof
from clearhead.cli.parse import Flag, parse, text
from clearhead.lens import (
    Ablation,
    CausalPairs,
    HeadSet,
    How,
    Importance,
    Panel,
    ablate_heads,
    causal_pairs,
    head_importance,
    single_heads,
)
from clearhead.model import GPT
from clearhead.recipes.lens import AblationLog, describe_ablation, parse_heads
from clearhead.recipes.load import load
from clearhead.recipes.texts import read_texts
from clearhead.train import keep_freed_memory

LENGTH = 256
_SHOWN = 15


@dataclass(frozen=True)
class DataArguments:
    """What both verbs over a data set are given."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    data: str
    """Text to measure on: pydocs, a file, a folder, or a prepared folder."""
    texts: int = 8
    """How many pieces of it."""
    length: int | None = None
    """Tokens in each; 256, or the model's context if that is less, by default."""
    how: How = "mean"
    """What takes a head's place: its mean over the texts, zero, or what it says in another text
    (resample)."""
    seed: int = 0
    """For the bootstrap, and for which other text."""
    out: Path | None = None
    """Keep what each text gives in this file of JSON lines, and go on from it if it is there."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    plot: Path | None = None
    """Draw the heat maps into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class Arguments(DataArguments):
    """Tell how much worse the model predicts without each head, or without some together."""

    heads: tuple[str, ...] = ()
    """Which heads: 9.9, or 9.9+10.0 for two together; each alone by default."""
    pairs: Flag = False
    """Tell for each pair of --heads what losing both costs beyond losing each."""


def ablate(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path, wanted = picture(parsed.plot), parse_heads(parsed.heads)
    model, texts = model_and_texts(parsed)
    sets = wanted or single_heads(model)
    with watched(parsed, texts, sets) as (done, on_text):
        found = ablate_heads(
            model, texts, sets, how=parsed.how, seed=parsed.seed, done=done, on_text=on_text
        )
    gradient = head_importance(model, texts)
    both = None
    if parsed.pairs:
        single = [head for heads in wanted for head in heads]
        both = causal_pairs(model, texts, single, how=parsed.how, seed=parsed.seed)
    if parsed.json:
        show.as_json(_document(found, gradient, both))
        return 0
    _show(found, gradient, both, model, path)
    return 0


def model_and_texts(parsed: DataArguments) -> tuple[GPT, Int[Tensor, "N T"]]:
    """Load the model and the texts."""
    keep_freed_memory()
    model, tokenizer = load(parsed.directory, device=parsed.device, merged=True)
    length = parsed.length or min(LENGTH, model.config.context_length)
    source = text(parsed.data, "--data")
    return model, read_texts(source, tokenizer, n_texts=parsed.texts, length=length)


Row = Float[Tensor, "segments columns"]


@contextmanager
def watched(
    parsed: DataArguments, texts: Int[Tensor, "N T"], sets: Sequence[HeadSet]
) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
    """Show progress and time left, and keep each text's row where --out says.

    Yields:
        The rows that are there already, and what to call with each new one.
    """
    log = None
    if parsed.out is not None:
        about = describe_ablation(parsed.directory, texts, sets, parsed.how, parsed.seed)
        log = AblationLog(parsed.out, about)
    done = log.rows if log else []
    columns = (TextColumn("ablating"), BarColumn(), MofNCompleteColumn(), TextColumn("texts"))
    console = show.progress()
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar as progress:
        task = progress.add_task("", total=len(texts), completed=len(done))

        def on_text(row: Row) -> None:
            if log:
                log.append(row)
            progress.advance(task)

        yield list(done), on_text


def _label(heads: HeadSet) -> str:
    return "+".join(name(*head) for head in heads)


def _gradient(gradient: Importance, heads: HeadSet) -> tuple[float, float] | None:
    if len(heads) > 1:
        return None
    return float(gradient.importance[heads[0]]), float(gradient.signed[heads[0]])


def _show(
    found: Ablation,
    gradient: Importance,
    both: CausalPairs | None,
    model: GPT,
    path: Path | None,
) -> None:
    config = model.config
    count, drawn = len(found.per_text), found.drawn
    show.facts(
        {
            "texts": count,
            "loss": f"{found.loss:.4f} nats a token",
            "replaced by": {"mean": "the head's mean", "zero": "zero"}.get(
                found.how, "what the head says in another text"
            ),
            "intervals": f"95 %, bootstrap over {drawn}",
        }
    )
    if len(found.sets) > 1 and all(len(heads) == 1 for heads in found.sets):
        delta = found.by_head(config.n_layers, config.n_heads)["delta"]
        panels = [
            Panel("loss without the head, less the loss with it", delta, "nats a token", True),
            Panel("gradient importance E |∂L/∂ξ|", gradient.importance, "nats"),
        ]
        show_panels(panels, path, "Ablation and gradient importance", found.proof)
    rows = []
    for at in found.delta.abs().argsort(descending=True)[:_SHOWN].tolist():
        heads = found.sets[at]
        slope = _gradient(gradient, heads)
        rows.append(
            (
                _label(heads),
                f"{float(found.delta[at]):+.5f}",
                f"{float(found.low[at]):+.5f} to {float(found.high[at]):+.5f}",
                f"{slope[0]:.5f}" if slope else "",
                f"{slope[1]:+.5f}" if slope else "",
            )
        )
    columns = ("without", "loss by", "95 % interval", "gradient", "signed")
    show.table("what is lost most", columns, rows)
    if both is not None:
        _show_pairs(both)
    show_proof(found.proof)


def _show_pairs(both: CausalPairs) -> None:
    rows = [
        (f"{name(*one)} and {name(*other)}", f"{float(lost):+.5f}", f"{float(more):+.5f}")
        for (one, other), lost, more in zip(both.pairs, both.both, both.interaction, strict=True)
    ]
    show.table("pairs", ("heads", "loss without both", "beyond the sum of each"), rows)
    words = "above 0: each stands in for the other (backup); below 0: they do the same thing"
    show.line(show.result(), words, "dim")


def _document(found: Ablation, gradient: Importance, both: CausalPairs | None) -> dict[str, Any]:
    sets = []
    for at, heads in enumerate(found.sets):
        slope = _gradient(gradient, heads)
        sets.append(
            {
                "heads": [name(*head) for head in heads],
                "delta": float(found.delta[at]),
                "low": float(found.low[at]),
                "high": float(found.high[at]),
                "importance": slope[0] if slope else None,
                "signed_importance": slope[1] if slope else None,
            }
        )
    pairs = both and [
        {
            "heads": [name(*head) for head in pair],
            "both": float(lost),
            "interaction": float(more),
        }
        for pair, lost, more in zip(both.pairs, both.both, both.interaction, strict=True)
    ]
    return {
        "texts": len(found.per_text),
        "loss": found.loss,
        "how": found.how,
        "bootstrap_over": found.drawn,
        "sets": sets,
        "pairs": pairs,
        "proofs": [str(found.proof)],
    }
