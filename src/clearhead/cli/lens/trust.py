"""`clearhead lens trust`: four answers to how much each head counts, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.cli import show
from clearhead.cli.lens.ablate import DataArguments, model_and_texts, watched
from clearhead.cli.lens.common import name, picture, show_panels, show_proof
from clearhead.cli.parse import parse
from clearhead.lens import MEASURES, Panel, Trust, single_heads, trust_table

_ABOUT = {
    "share": "what it adds to its layer's output",
    "attribution": "what it adds, by itself, to the true next token's logit",
    "importance": "how much the loss moves when it becomes a little louder (gradient)",
    "ablation": "what the loss gains without it",
}


@dataclass(frozen=True)
class Arguments(DataArguments):
    """Tell how much each head counts: share, attribution, gradient and ablation side by side."""

    top: int = 20
    """How many heads to show, those that rank highest on average; 0 for all."""


def trust(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    model, texts = model_and_texts(parsed)
    with watched(parsed, texts, single_heads(model)) as (done, on_text):
        found = trust_table(
            model, texts, how=parsed.how, seed=parsed.seed, done=done, on_text=on_text
        )
    if parsed.json:
        show.as_json(_document(found))
        return 0
    panels = [
        Panel(measure, getattr(found, measure), unit, centred=measure != "importance")
        for measure, unit in zip(
            MEASURES, ("part of the output", "logits", "nats", "nats a token"), strict=True
        )
    ]
    show_panels(panels, path, "How much each head counts", found.proof)
    for measure, about in _ABOUT.items():
        show.line(show.result(), f"{measure}: {about}", "dim")
    columns = ("head", *MEASURES, "95 % interval", "reading")
    show.table("trust", columns, _rows(found, parsed.top))
    show.line(
        show.result(),
        "percent: how many of the heads rank below this one by absolute value; a reading stands "
        "where two ranks are further apart than half of all heads",
        "dim",
    )
    show_proof(found.proof)
    return 0


def _rows(found: Trust, top: int) -> list[Sequence[object]]:
    n_heads = found.share.shape[1]
    order = found.ranks.mean(0).flatten().argsort(descending=True).tolist()
    rows: list[Sequence[object]] = []
    for flat in order[: top or None]:
        at = divmod(flat, n_heads)
        values = [
            f"{float(getattr(found, measure)[at]):+.3f} {float(rank[at]):>4.0%}"
            for measure, rank in zip(MEASURES, found.ranks, strict=True)
        ]
        interval = f"{float(found.low[at]):+.3f} {float(found.high[at]):+.3f}"
        rows.append((name(*at), *values, interval, found.reading(*at)))
    return rows


def _document(found: Trust) -> dict[str, Any]:
    n_layers, n_heads = found.share.shape
    return {
        "texts": len(found.ablated.per_text),
        "loss": found.ablated.loss,
        "how": found.ablated.how,
        "heads": [
            {
                "layer": layer,
                "head": head,
                **{measure: float(getattr(found, measure)[layer, head]) for measure in MEASURES},
                "interval": [float(found.low[layer, head]), float(found.high[layer, head])],
                "ranks": dict(zip(MEASURES, found.ranks[:, layer, head].tolist(), strict=True)),
                "disagree": bool(found.disagree[layer, head]),
                "reading": found.reading(layer, head),
            }
            for layer in range(n_layers)
            for head in range(n_heads)
        ],
        "proofs": [str(found.proof)],
    }
