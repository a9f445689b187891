"""Make the pictures and the numbers of docs/out_proj.md, all of them computed here.

`python docs/scripts/figures.py` trains a small model for some steps (about a minute on two cores)
and writes docs/images/out_proj/.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from clearhead import lens, load, pretrain, recipe, text_to_token_ids
from clearhead.lens import Panel, save_panels
from clearhead.recipes.lens import read_texts, try_edits

FOLDER = Path(__file__).parent.parent / "images" / "out_proj"
STEPS = 400
EIGHTH = [str(at) if at % 8 == 0 else "" for at in range(32)]
TEXT = "The function returns a list of all the values that"


def main(steps: int = STEPS, folder: Path = FOLDER) -> None:
    """Write everything into a folder; the model is trained for `steps` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    made_up(folder)
    with TemporaryDirectory() as run:
        settings = replace(recipe("nano"), out=Path(run) / "run", steps=steps, minutes=None)
        pretrain(settings)
        trained(folder, Path(run) / "run")


def made_up(folder: Path) -> None:
    """Draw the example with made-up numbers."""
    example = lens.worked_example()
    save_panels(
        folder / "example.png",
        [
            Panel("what the heads say, z", example.z, "made up", rows="head", columns="number"),
            Panel(
                "W_O, a block of 8 rows a head",
                example.out.flatten(0, 1),
                "weight",
                centred=True,
                rows="number of the concatenation",
                columns="column of the output",
                row_labels=EIGHTH,
                column_labels=EIGHTH,
            ),
            Panel(
                "what each head adds, r = z W_O[h]",
                example.contributions,
                "made up",
                centred=True,
                rows="head",
                columns="column of the output",
                column_labels=EIGHTH,
            ),
        ],
        "Four heads of eight numbers, and the matrix that puts them together",
        str(example.proof),
    )
    outputs = torch.stack([example.output, example.flipped, example.unmixed])
    save_panels(
        folder / "edited.png",
        [
            Panel(
                "the layer's output",
                outputs,
                "made up",
                centred=True,
                rows="",
                columns="column of the output",
                row_labels=["as it is", "h3 flipped", "W_O the identity"],
                column_labels=EIGHTH,
            )
        ],
        "The same heads, put together in three ways",
        str(example.proof),
    )
    modes = lens.mixing_modes(of_projection(example.out))
    first = [0, 8, 16, 24]
    save_panels(
        folder / "modes.png",
        [
            Panel(
                "what a mode reads of each head",
                (modes.signs * modes.mass.sqrt())[0, first],
                "part of the mode, with its sign",
                centred=True,
                rows="",
                row_labels=[f"8 modes of strength {modes.singular[0, at]:.2f}" for at in first],
            )
        ],
        "Found in W_O alone",
        str(modes.proof),
    )
    columns = {"h1 − h3": example.z[1] - example.z[3], "columns 0 to 7": example.output[:8]}
    columns |= {"2·h0": 2 * example.z[0], "columns 8 to 15": example.output[8:16]}
    columns |= {"mean of all": example.z.mean(0), "columns 16 to 23": example.output[16:24]}
    columns |= {"columns 24 to 31": example.output[24:]}
    lines = [f"{name:<17}{numbers(values)}" for name, values in columns.items()]
    write(folder / "example.txt", [*lines, "", str(example.proof)])


def trained(folder: Path, run: Path) -> None:
    """Draw a trained model's heads, and the trap."""
    model, tokenizer = load(run, device="cpu")
    texts = read_texts("pydocs", tokenizer, n_texts=16, length=model.config.context_length)
    found = lens.head_contributions(model, texts)
    save_panels(
        folder / "shares.png",
        [
            Panel("share of the layer's output", found.mean_share, "fraction", centred=True),
            Panel("strength", found.mean_strength, "norm in the residual stream"),
        ],
        "What each head adds, over 16 texts",
        str(found.proof),
    )
    share = found.mean_share
    loud, low = (divmod(int(at), share.shape[1]) for at in (share.argmax(), share.argmin()))
    sums = numbers(share.sum(1))
    write(
        folder / "shares.txt",
        [
            f"largest share   head {loud[0]}.{loud[1]}  {share[loud]:+.3f}",
            f"smallest share  head {low[0]}.{low[1]}  {share[low]:+.3f}",
            f"shares of each layer, summed  {sums}",
            "",
            str(found.proof),
        ],
    )
    ids = text_to_token_ids(TEXT, tokenizer)
    wrong = [lens.trap(model, ids, layer) for layer in range(model.config.n_layers)]
    strength = torch.stack([one.strength for one in wrong])
    slices = torch.stack([one.slice_strength for one in wrong])
    cosine = torch.stack([one.cosine for one in wrong])
    save_panels(
        folder / "trap.png",
        [
            Panel("right: what head h adds", strength, "norm in the residual stream"),
            Panel("wrong: slice h of the output", slices, "norm in the residual stream"),
            Panel("do they point the same way?", cosine, "cosine", centred=True),
        ],
        "The trap: slices of the output are not heads",
        str(wrong[-1].proof),
    )
    write(
        folder / "trap.txt",
        [
            f"cosine of a slice with what its head adds: mean {cosine.mean():+.2f}, "
            f"from {cosine.min():+.2f} to {cosine.max():+.2f}; 1 / heads = "
            f"{1 / model.config.n_heads:.2f}",
            str(wrong[-1].proof),
        ],
    )
    edits = try_edits(model, tokenizer, ids, model.config.n_layers - 1)
    width = max(len(one.edit) for one in edits)
    write(
        folder / "edits.txt",
        [
            f"{one.edit:<{width}}  {one.loss:.3f} nats a token; next {one.next_token!r} "
            f"{one.probability:.1%}"
            for one in edits
        ],
    )


def of_projection(out: torch.Tensor) -> lens.Weights:
    """Return weights of one layer that has this W_O [H, K, D], and nothing else."""
    heads, _, d_model = out.shape
    layer = lens.layer_weights(
        qkv=torch.zeros(d_model, 3 * d_model),
        qkv_bias=None,
        out=out.flatten(0, 1),
        out_bias=None,
        norm=torch.ones(d_model),
        n_heads=heads,
    )
    return lens.Weights((layer,))


def numbers(values: torch.Tensor) -> str:
    """Write a few numbers in one line."""
    return " ".join(f"{value:6.3f}" for value in values.tolist())


def write(path: Path, lines: list[str]) -> None:
    """Write lines of text."""
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
