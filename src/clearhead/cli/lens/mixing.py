"""`clearhead lens mixing`: which heads the output projection mixes; of the weights alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.lens.common import name, picture, show_panels, show_proof
from clearhead.cli.parse import Flag, parse
from clearhead.lens import Mixing, Overlap, Panel, head_overlap, mixing_modes
from clearhead.recipes.lens import attention_weights

_QUIET = 0.05


@dataclass(frozen=True)
class Arguments:
    """Tell which heads each output projection mixes, and how much their outputs overlap."""

    source: Positional[Path]
    """A checkpoint, a run, or a safetensors file with at least the attention tensors."""
    layers: tuple[int, ...] = ()
    """Which layers; all by default."""
    modes: int = 4
    """How many of each layer's strongest mixing modes to show."""
    n_heads: int | None = None
    """Heads a layer, for a lone file; by default as many as are 64 wide."""
    plot: Path | None = None
    """Draw the heat maps into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def mixing(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    weights = attention_weights(parsed.source, n_heads=parsed.n_heads)
    layers = parsed.layers or None
    modes = mixing_modes(weights, layers=layers, modes=parsed.modes)
    shared = head_overlap(weights, layers=layers)
    if parsed.json:
        show.as_json(
            {
                "layers": list(modes.layers),
                "mixing": modes.to_json(),
                "overlap": shared.to_json(),
                "proofs": [str(modes.proof), str(shared.proof)],
            }
        )
        return 0
    labels = [str(layer) for layer in modes.layers]
    mean, most = _overlaps(shared)
    panels = [
        Panel("gain ‖W_O[h]‖", modes.gain, "Frobenius norm", row_labels=labels),
        Panel(
            f"overlap with the other heads, on average (chance {shared.chance:.3f})",
            mean,
            "fraction of the head's dimensions",
            row_labels=labels,
        ),
    ]
    show_panels(panels, path, "The output projections", modes.proof)
    show.table(
        "strongest mixing modes",
        ("layer", "mode", "gain", "heads mixed", "heads, by how much of them the mode reads"),
        [row for at in range(len(modes.layers)) for row in _modes(modes, at)],
    )
    show.line(
        show.result(),
        "+ and −: the mode adds a head to the strongest one or takes it off, channel by channel; "
        "±: neither",
        "dim",
    )
    show.table("heads that overlap most", ("heads", "overlap", "chance"), most)
    show_proof(modes.proof)
    show_proof(shared.proof)
    return 0


def _modes(modes: Mixing, at: int) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for mode in range(modes.singular.shape[1]):
        mass, signs = modes.mass[at, mode], modes.signs[at, mode]
        heard = "  ".join(
            f"{_sign(float(signs[head]))}h{head} {float(mass[head]):.0%}"
            for head in mass.argsort(descending=True).tolist()
            if float(mass[head]) >= _QUIET
        )
        mixed = float(modes.heads_mixed[at, mode])
        rows.append((modes.layers[at], mode, float(modes.singular[at, mode]), mixed, heard))
    return rows


def _sign(cosine: float) -> str:
    return "+" if cosine > 0.5 else "−" if cosine < -0.5 else "±"


def _overlaps(shared: Overlap) -> tuple[torch.Tensor, list[Sequence[object]]]:
    """Return each head's mean overlap with the others of its layer, and the largest of all."""
    n_heads = shared.overlap.shape[1]
    others = shared.overlap.sum(-1) - shared.overlap.diagonal(dim1=1, dim2=2)
    found: list[tuple[float, Any]] = [
        (float(shared.overlap[at, one, other]), (layer, one, other))
        for at, layer in enumerate(shared.layers)
        for one in range(n_heads)
        for other in range(one + 1, n_heads)
    ]
    rows: list[Sequence[object]] = [
        (f"{name(layer, one)} and {name(layer, other)}", value, shared.chance)
        for value, (layer, one, other) in sorted(found, reverse=True)[:5]
    ]
    return others / max(1, n_heads - 1), rows
