"""`clearhead lens demo`: what the output projection does, on numbers that one can follow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.heat import heat_map
from clearhead.cli.lens.common import model_and_text, show_proof
from clearhead.cli.parse import Flag, parse
from clearhead.errors import ClearheadError
from clearhead.lens import Panel, head_contributions
from clearhead.lens.example import Example, Trap, trap, worked_example
from clearhead.recipes.lens import Edited, quick_model, try_edits

_TEXT = "The function returns a list of all the values that"


@dataclass(frozen=True)
class Arguments:
    """Show what the output projection does: on made-up numbers, then on a trained model."""

    directory: Positional[Path | None] = None
    """A checkpoint, or the folder of a run; without one, a small model is trained for a few seconds
    on the text that Python carries."""
    text: str = _TEXT
    """What the trained model reads."""
    layer: int = -1
    """Which of its layers, counted from 0, or from the end if negative."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    json: Flag = False
    """Print the result as one JSON object."""


def demo(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    if parsed.directory is not None:
        return _show(parsed, parsed.directory)
    show.line(show.progress(), "training a small model for the second half …", "dim")
    with TemporaryDirectory() as folder:
        return _show(parsed, quick_model(Path(folder)))


def _show(parsed: Arguments, directory: Path) -> int:
    model, tokenizer, ids, words = model_and_text(directory, parsed.text, parsed.device)
    if parsed.text == _TEXT:  # which not every context holds
        ids, words = ids[:, : model.config.context_length], words[: model.config.context_length]
    if len(words) < 2:
        raise ClearheadError("--text is one token; give one of at least two, to have a next one")
    count = model.config.n_layers
    if not -count <= parsed.layer < count:
        raise ClearheadError(f"there is no layer {parsed.layer}; the model has {count}, from 0")
    layer = parsed.layer % count
    made_up = worked_example()
    found = head_contributions(model, ids, layers=[layer])
    wrong = trap(model, ids, layer)
    edits = try_edits(model, tokenizer, ids, layer)
    share: Float[Tensor, " H"] = found.share[0, 0, -1]
    if parsed.json:
        trained = {
            "layer": layer,
            "tokens": words,
            "share": share.tolist(),
            "trap": wrong.to_json(),
            "edits": [asdict(one) for one in edits],
            "proof": str(found.proof),
        }
        show.as_json({"example": made_up.to_json(), "trained": trained})
    else:
        _show_example(made_up)
        _show_trained(layer, words, share, wrong, edits)
        show_proof(found.proof)
    return 0


def _show_example(found: Example) -> None:
    n_heads, head_dim = found.z.shape
    rows = [f"h{head}" for head in range(n_heads)]
    columns = [str(at) for at in range(n_heads * head_dim)]
    show.line(show.result(), f"{n_heads} heads of {head_dim} channels, numbers made up", "bold")
    heat_map(
        Panel(
            "z: what each head says; laid side by side they are the concatenation",
            found.z,
            "made up",
            rows="head",
            columns="channel",
            row_labels=rows,
        )
    )
    heat_map(
        Panel(
            "W_O by blocks: head h into 8 columns of the output; each is this times the identity",
            torch.unflatten(found.out, 2, (n_heads, head_dim)).diagonal(dim1=1, dim2=3).mean(-1),
            "made up",
            centred=True,
            rows="head",
            columns="columns of the output",
            row_labels=rows,
            column_labels=[f"{at * head_dim}–{(at + 1) * head_dim - 1}" for at in range(n_heads)],
        )
    )
    total = found.contributions.sum(0)
    lines = [*found.contributions, total, found.output, found.flipped, found.unmixed]
    heat_map(
        Panel(
            "r_h = z_h W_O[h], their sum, and what edits make of it",
            torch.stack(lines),
            "made up",
            centred=True,
            rows="",
            columns="column of the output",
            row_labels=[*rows, "sum of h0–h3", "z W_O", "h3 flipped", "W_O = identity"],
            column_labels=columns,
        )
    )
    out = [float(found.output[at]) for at in range(0, n_heads * head_dim, head_dim)]
    z = [float(value) for value in found.z[:, 0]]
    for line in (
        f"columns 0–7 hold h1 − h3: {z[1]:.1f} − {z[3]:.1f} = {out[0]:.1f} in the first",
        f"columns 8–15 hold twice h0: 2 · {z[0]:.1f} = {out[1]:.1f}",
        f"columns 16–23 hold the mean of all heads: {out[2]:.2f}",
        f"columns 24–31 hear no head: {out[3]:.1f}",
        f"h3 flipped turns h1 − h3 into h1 + h3: {float(found.flipped[0]):.1f}",
        "with the identity for W_O nothing is mixed: the output is the concatenation",
    ):
        show.line(show.result(), f"  {line}")
    show_proof(found.proof)


def _show_trained(
    layer: int, words: list[str], share: Float[Tensor, " H"], wrong: Trap, edits: list[Edited]
) -> None:
    title = f"\nthe same in layer {layer} of a trained model, at {words[-1]!r}, the last token"
    show.line(show.result(), title, "bold")
    show.table(
        "",
        ("head", "share", "‖r_h‖", "a slice of the output says", "cosine of the two"),
        [
            (
                f"h{head}",
                float(share[head]),
                float(wrong.strength[head]),
                float(wrong.slice_strength[head]),
                float(wrong.cosine[head]),
            )
            for head in range(len(share))
        ],
    )
    show.line(
        show.result(),
        "the last two columns are the usual mistake: a slice of the output is no head, since every "
        "column of W_O mixes all of them",
        "dim",
    )
    show.table(
        "what changes when the layer is edited",
        ("edit", "loss (nats a token)", "difference", "it would go on with", "probability"),
        [
            (one.edit, one.loss, one.loss - edits[0].loss, repr(one.next_token), one.probability)
            for one in edits
        ],
    )
