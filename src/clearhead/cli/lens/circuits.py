"""`clearhead lens circuits`: what heads do for each other, and with tokens that come again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.heat import heat_map
from clearhead.cli.lens.common import picture, show_proof
from clearhead.cli.parse import Flag, parse
from clearhead.errors import ClearheadError
from clearhead.lens import (
    AttentionScores,
    Composition,
    Copying,
    Panel,
    attention_scores,
    composition,
    copying,
    save_panels,
    weights,
)
from clearhead.recipes.lens import attention_weights, lens_model


@dataclass(frozen=True)
class Arguments:
    """Tell which heads feed which, which copy, and which look for what came before."""

    source: Positional[Path]
    """A checkpoint, a run, or a safetensors file with at least the attention tensors: then
    composition only, and copying if the embeddings are there. A classifier has no copying."""
    top: int = 15
    """How many of the strongest compositions to show; JSON has all."""
    kind: Literal["Q", "K", "V"] | None = None
    """Show compositions into the reader's queries, keys or values only."""
    reader: str | None = None
    """Show what feeds this head only, such as 5.5."""
    n_random: int = 100
    """Random tokens that are repeated, to find induction heads."""
    seed: int = 0
    """For drawing them."""
    n_heads: int | None = None
    """Heads a layer, for a lone file; by default as many as are 64 wide."""
    plot: Path | None = None
    """Draw the heat maps into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def circuits(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    model = None if parsed.source.is_file() else lens_model(parsed.source)
    found = weights(model or attention_weights(parsed.source, n_heads=parsed.n_heads))
    composed = composition(found)
    chosen = _chosen(composed, parsed.kind, parsed.reader)
    can_copy = found.embedding is not None and found.unembedding is not None
    copied = copying(found) if can_copy else None
    looks = attention_scores(model, n_random=parsed.n_random, seed=parsed.seed) if model else None
    if parsed.json:
        show.as_json(_document(composed, copied, looks))
        return 0
    panels = _panels(copied, looks)
    for panel in panels:
        heat_map(panel)
    if path is not None:
        proof = str(composed.proof) if composed.proof else ""
        save_panels(path, [*panels, _composition_panel(composed)], "Circuits", proof)
        show.facts({"\npicture": path})
    show.table(
        "strongest compositions",
        ("kind", "writer", "reader", "score", "above chance"),
        [
            (one["kind"], one["writer"], one["reader"], one["score"], _above(one))
            for one in chosen[: parsed.top]
        ],
    )
    show.line(
        show.result(),
        "Q, K, V: the writer's output becomes the reader's queries, keys or values; the reader's "
        f"LayerNorm is folded in; chance, taken off, is {composed.baseline:.4f}",
        "dim",
    )
    for result in (composed, copied, looks):
        show_proof(result.proof if result else None)
    return 0


def _chosen(composed: Composition, kind: str | None, reader: str | None) -> list[dict[str, Any]]:
    pairs = composed.pairs()
    if reader is not None and not any(one["reader"] == reader for one in pairs):
        names = {one["reader"] for one in pairs}
        readers = sorted(names, key=lambda one: [int(part) for part in one.split(".")])
        between = f"{readers[0]} to {readers[-1]}" if readers else "none, in a model of one layer"
        raise ClearheadError(f"nothing feeds a head {reader!r}; readers are {between}")
    return [one for one in pairs if kind in (None, one["kind"]) and reader in (None, one["reader"])]


def _above(pair: dict[str, Any]) -> float:
    return float(pair["score"] - pair["baseline"])


def _panels(copied: Copying | None, looks: AttentionScores | None) -> list[Panel]:
    panels = []
    if looks:
        length = looks.n_random
        panels += [
            Panel(f"induction ({length} tokens twice)", looks.induction, "attention"),
            Panel("previous token", looks.previous, "attention"),
            Panel("duplicate token", looks.duplicate, "attention"),
        ]
    if copied:
        panels.append(Panel("copying", copied.copying, "Σ Re λ / Σ |λ|", centred=True))
    return panels


def _composition_panel(composed: Composition) -> Panel:
    """Show every pair by the strongest of its kinds, above chance."""
    n_layers, n_heads = composed.score.shape[1:3]
    best = composed.score.amax(0).flatten(2).flatten(0, 1)  # [writer, reader]
    layer = torch.arange(n_layers * n_heads) // n_heads
    above = torch.where(layer[:, None] < layer, best - composed.baseline, torch.nan)
    names = [f"{at // n_heads}.{at % n_heads}" for at in range(n_layers * n_heads)]
    return Panel(
        "composition, the strongest of Q, K and V",
        above,
        "score above chance",
        centred=True,
        rows="writer",
        columns="reader",
        row_labels=names,
        column_labels=names,
    )


def _document(
    composed: Composition, copied: Copying | None, looks: AttentionScores | None
) -> dict[str, Any]:
    results = [one for one in (composed, copied, looks) if one is not None]
    return {
        "composition": composed.pairs(),
        "copying": copied.to_json() if copied else None,
        "attention_scores": looks.to_json() if looks else None,
        "proofs": [str(one.proof) for one in results if one.proof],
    }
