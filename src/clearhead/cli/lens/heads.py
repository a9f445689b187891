"""`clearhead lens heads`: what each head adds to its layer's output, and from which tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.lens.common import model_and_text, name, picture, show_panels, show_proof
from clearhead.cli.parse import Flag, parse
from clearhead.lens import (
    Heads,
    Pairs,
    Panel,
    Sources,
    head_contributions,
    head_pairs,
    source_tokens,
)
from clearhead.lens.sources import check_position

_SOURCES = 3
_STRONGEST = 8


@dataclass(frozen=True)
class Arguments:
    """Tell how much each head adds to its layer's output, how strongly, and from which tokens."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    text: str
    """What the model reads."""
    token: int | None = None
    """Look at this token only, counted from 0, or from the end if negative; else all on average."""
    layers: tuple[int, ...] = ()
    """Which layers; all by default."""
    fold_value_bias: Flag = False
    """Count what the values' bias adds through a head, the same for every token, to no head."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    plot: Path | None = None
    """Draw the heat maps into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def heads(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    model, _, ids, words = model_and_text(parsed.directory, parsed.text, parsed.device)
    layers = parsed.layers or None
    at = None if parsed.token is None else check_position(ids, parsed.token)
    found = head_contributions(model, ids, layers=layers, fold_value_bias=parsed.fold_value_bias)
    origins = source_tokens(model, ids, position=at, layers=layers)
    together = head_pairs(model, ids, layers=layers)
    if parsed.json:
        show.as_json(_document(found, origins, together, words, at))
        return 0
    where = "average over the text" if at is None else f"token {at}, {words[at]!r}"
    show.facts({"text": f"{len(words)} tokens", "looked at": where})
    labels = [str(layer) for layer in found.layers]
    share, strength = _at(found, at)
    panels = [
        Panel(
            "share",
            share,
            "part of the output",
            True,
            row_labels=labels,
        ),
        Panel("strength", strength, "norm of what the head adds", row_labels=labels),
    ]
    show_panels(panels, path, f"What each head adds ({where})", found.proof)
    show.table(
        "where the strongest heads take it from",
        ("head", "share", "strength", "from (strength of each token)"),
        _strongest(found, origins, words, at),
    )
    show.table(
        "heads of a layer together",
        ("layer", "cancellation", "most opposed", "cosine", "most alike", "cosine "),
        [_pair_row(together, row) for row in range(len(found.layers))],
    )
    show.line(
        show.result(),
        "cancellation: 0 if all heads agree, towards 1 if they undo each other",
        "dim",
    )
    show_proof(found.proof)
    show_proof(origins.proof)
    return 0


def _at(found: Heads, at: int | None) -> tuple[Float[Tensor, "L H"], Float[Tensor, "L H"]]:
    """Return shares and strengths at a token, or on average."""
    if at is None:
        return found.mean_share, found.mean_strength
    return found.share[:, 0, at], found.strength[:, 0, at]


def _strongest(
    found: Heads, origins: Sources, words: list[str], at: int | None
) -> Sequence[Sequence[object]]:
    share, strength = _at(found, at)
    rows = []
    for flat in strength.flatten().argsort(descending=True)[:_STRONGEST].tolist():
        row, head = divmod(flat, strength.shape[1])
        origin = "  ".join(
            f"{words[one['position']]!r} {one['strength']:.3g}"
            for one in _top_sources(origins, row, head, words)
        )
        number = name(found.layers[row], head)
        rows.append((number, float(share[row, head]), float(strength[row, head]), origin))
    return rows


def _top_sources(origins: Sources, row: int, head: int, words: list[str]) -> list[dict[str, Any]]:
    strength, attention = origins.strength[row, head], origins.attention[row, head]
    return [
        {
            "position": place,
            "token": words[place],
            "attention": float(attention[place]),
            "strength": float(strength[place]),
        }
        for place in strength.argsort(descending=True)[:_SOURCES].tolist()
        if strength[place] > 0
    ]


def _pair_row(together: Pairs, row: int) -> Sequence[object]:
    layer, cosine = together.layers[row], together.cosine[row]
    lost = float(together.cancellation[row])
    if len(cosine) < 2:
        return layer, lost, "", 0.0, "", 0.0
    one, other = torch.tril_indices(len(cosine), len(cosine), -1)
    values = cosine[one, other]
    low, high = int(values.argmin()), int(values.argmax())
    named = [f"{name(layer, int(other[at]))} and {name(layer, int(one[at]))}" for at in (low, high)]
    return layer, lost, named[0], float(values[low]), named[1], float(values[high])


def _document(
    found: Heads, origins: Sources, together: Pairs, words: list[str], at: int | None
) -> dict[str, Any]:
    share, strength = _at(found, at)
    return {
        "tokens": words,
        "token": at,
        "layers": [
            {
                "layer": layer,
                "residual": found.proofs[row].residual,
                "cancellation": float(together.cancellation[row]),
                "cosine": together.cosine[row].tolist(),
                "centred_correlation": together.centred[row].tolist(),
                "heads": [
                    {
                        "head": head,
                        "share": float(share[row, head]),
                        "strength": float(strength[row, head]),
                        "gain": float(found.gain[row, head]),
                        "sources": _top_sources(origins, row, head, words),
                    }
                    for head in range(share.shape[1])
                ],
            }
            for row, layer in enumerate(found.layers)
        ],
        "proofs": [str(one.proof) for one in (found, origins, together)],
    }
