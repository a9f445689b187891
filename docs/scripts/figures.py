"""Make the pictures and the numbers of docs/out_proj.md, all of them computed here.

`python docs/scripts/figures.py` trains a small model for some steps (some minutes on two cores)
and writes docs/images/out_proj/. What GPT-2 small's attention weights say is kept there from the
time before, in gpt2.json; `--published model.safetensors` measures it anew.
"""

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from clearhead import lens, load, pretrain, recipe, text_to_token_ids
from clearhead.lens import Panel, save_panels
from clearhead.model import GPT
from clearhead.recipes.lens import attention_weights
from clearhead.recipes.texts import read_texts

FOLDER = Path(__file__).parent.parent / "images" / "out_proj"
STEPS = 400
READERS = ("5.5", "6.9")  # GPT-2 small's induction heads
LATE = 2  # from this layer on its writers are not ruled by single dimensions
EIGHTH = [str(at) if at % 8 == 0 else "" for at in range(32)]
TEXT = "The function returns a list of all the values that"


def main(steps: int = STEPS, folder: Path = FOLDER, published: Path | None = None) -> None:
    """Write everything into a folder; the model is trained for `steps` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    if published:
        lines = (
            f"{json.dumps(name)}: {json.dumps(one)}" for name, one in of_gpt2(published).items()
        )
        write(folder / "gpt2.json", ["{", ",\n".join(lines), "}"])
    made_up(folder)
    known = json.loads((folder / "gpt2.json").read_text())
    draw_gpt2(folder, known)
    with TemporaryDirectory() as run:
        settings = replace(
            recipe("nano"),
            out=Path(run) / "run",
            steps=steps,
            minutes=None,
            evaluate_every=steps,
            evaluation_tokens=2048,
        )
        pretrain(settings)
        trained(folder, Path(run) / "run", known)


def made_up(folder: Path) -> None:
    """Draw the example with made-up numbers."""
    example = lens.worked_example()
    save_panels(
        folder / "example.png",
        [
            Panel("what the heads say, z", example.z, "made up", rows="head", columns="number"),
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
        "Four heads of eight numbers, before the projection and after it",
        str(example.proof),
    )
    draw_projection(folder / "projection.png", example.out)
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


def draw_projection(path: Path, out: torch.Tensor) -> None:
    """Draw W_O as the square that it is, with a line between the heads' blocks of rows."""
    n_heads, head_dim, d_model = out.shape
    figure = Figure(figsize=(6, 4.8), layout="constrained")
    axes = figure.subplots()
    most = float(out.abs().max())
    image = axes.imshow(out.flatten(0, 1).numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    places = range(0, d_model, head_dim)
    axes.set_xticks(places)
    axes.set_yticks(
        places, [f"h{head}  {at}" for head, at in zip(range(n_heads), places, strict=True)]
    )
    for at in places[1:]:
        axes.axhline(at - 0.5, color="black", linewidth=0.8)
    axes.set_title("W_O, a block of 8 rows a head", fontsize="medium")
    axes.set_xlabel("column of the output")
    axes.set_ylabel("head, number of the concatenation")
    figure.colorbar(image, ax=axes, label="weight")
    figure.savefig(path, dpi=120)


def trained(folder: Path, run: Path, known: dict[str, Any]) -> None:
    """Draw a trained model's heads, the trap, and overlap beside that of GPT-2 small."""
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
    last = model.config.n_layers - 1
    z = lens.run(model, texts, "z", layers=[last])["z", last].flatten(0, 1)  # [N, H, K]
    owners = slice_shares(lens.split(z, lens.weights(model).layers[last].out))
    save_panels(
        folder / "trap.png",
        [
            Panel("right: what head h adds", strength, "norm in the residual stream"),
            Panel("wrong: slice h of the output", slices, "norm in the residual stream"),
            Panel("do they point the same way?", cosine, "cosine", centred=True),
            Panel(
                f"whose is each slice, in layer {last}?",
                owners,
                "part of the slice",
                centred=True,
                rows="slice of the output",
            ),
        ],
        "The trap: slices of the output are not heads",
        str(wrong[-1].proof),
    )
    write(
        folder / "trap.txt",
        [
            f"cosine of a slice with what its head adds: mean {cosine.mean():+.2f}, "
            f"from {cosine.min():+.2f} to {cosine.max():+.2f}",
            f"part of a slice that its head makes up: mean {owners.diagonal().mean():+.2f}, "
            f"from {owners.diagonal().min():+.2f} to {owners.diagonal().max():+.2f}",
            f"1 / heads: {1 / model.config.n_heads:.2f}",
            "",
            str(wrong[-1].proof),
        ],
    )
    write(folder / "edits.txt", edits(model, texts, share))
    torch.manual_seed(0)
    fresh = GPT(model.config)
    draw_overlap(
        folder / "overlap.png",
        {
            "random weights": (pairs(lens.head_overlap(fresh)), known_chance(model)),
            "the small trained model": (pairs(lens.head_overlap(model)), known_chance(model)),
            "GPT-2 small": (known["overlap"], known["chance"]),
        },
    )


def known_chance(model: GPT) -> float:
    """Return the overlap of subspaces that lie at random, K / D."""
    return 1 / model.config.n_heads


def slice_shares(added: torch.Tensor) -> torch.Tensor:
    """Return how much each head makes up of each slice of the output [slice, head].

    Args:
        added: The heads' contributions r_h [N, H, D].
    """
    parts = added.unflatten(-1, (added.shape[1], -1))  # [N, H, slice, K]
    whole = parts.sum(1)
    return torch.einsum("nhsk,nsk->sh", parts, whole) / whole.square().sum((0, 2))[:, None]


@torch.no_grad()
def edits(model: GPT, texts: torch.Tensor, share: torch.Tensor) -> list[str]:
    """Return by how much edits of each layer's loudest head, and of its W_O, raise the loss."""

    def loss(edit: Any) -> float:
        with edit:
            logits = model(texts)[:, :-1]
        return float(cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten()))

    before = loss(nullcontext())
    lines = [f"{'layer':<6} {'head':<5} silenced  flipped  swapped with  W_O the identity"]
    for layer, row in enumerate(share):
        loud, low = int(row.argmax()), int(row.argmin())
        made = (
            lens.scale_heads(model, layer, {loud: 0.0}),
            lens.scale_heads(model, layer, {loud: -1.0}),
            lens.swap_heads(model, layer, loud, low),
            lens.identity_projection(model, layer),
        )
        silenced, flipped, swapped, identity = (loss(one) - before for one in made)
        lines.append(
            f"{layer:<6} h{loud:<4} {silenced:+8.3f} {flipped:+8.3f}  h{low} {swapped:+10.3f} "
            f"{identity:+17.3f}"
        )
    return [*lines, "", f"nats a token, added to a loss of {before:.3f}"]


def pairs(found: lens.Overlap) -> list[list[float]]:
    """Return the overlap of each two different heads, by layer."""
    one, other = torch.triu_indices(*found.overlap.shape[1:], offset=1)
    return rounded(found.overlap[:, one, other])


def draw_overlap(path: Path, models: dict[str, tuple[list[list[float]], float]]) -> None:
    """Draw the overlap of each two heads of a layer, a point each, beside chance."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    widths = [len(layers) for layers, _ in models.values()]
    both = figure.subplots(1, len(models), sharey=True, width_ratios=widths)
    for axes, (name, (layers, chance)) in zip(both, models.items(), strict=True):
        for layer, values in enumerate(layers):
            places = torch.linspace(layer - 0.25, layer + 0.25, len(values))
            axes.scatter(places, values, s=9, color="#0072b2", linewidths=0)
        axes.axhline(chance, color="#d55e00", label=f"chance, {chance:.3f}")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("layer")
        axes.set_xticks(range(len(layers)))
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("overlap of two heads\n(fraction of a head's dimensions)")
    figure.savefig(path, dpi=120)


def of_gpt2(path: Path) -> dict[str, Any]:
    """Measure GPT-2 small's attention weights."""
    found = attention_weights(path)
    modes, overlap, composed = (
        lens.mixing_modes(found),
        lens.head_overlap(found),
        lens.composition(found),
    )
    torch.manual_seed(0)
    noise = torch.randn(found.n_heads, found.head_dim, found.d_model)
    every = composed.pairs()
    strongest = [next(one for one in every if one["kind"] in kinds) for kinds in ("V", "QK")]
    strongest += [one for one in every if int(one["writer"].split(".")[0]) >= LATE][:3]
    keys = composed.score[1]
    return {
        "gain": rounded(modes.gain),
        "heads_mixed": rounded(modes.heads_mixed.flatten().sort().values[::12]),
        "noise_mixes": rounded(lens.mixing_modes(of_projection(noise)).heads_mixed.median()),
        "overlap": pairs(overlap),
        "chance": rounded(torch.tensor(overlap.chance)),
        "baseline": rounded(torch.tensor(composed.baseline)),
        "keys": {
            name: rounded(keys[: int(name[0]), :, int(name[0]), int(name[2])]) for name in READERS
        },
        "strongest": [{**one, **carriers(found, one)} for one in strongest],
    }


def carriers(found: lens.Weights, pair: dict[str, Any]) -> dict[str, Any]:
    """Return how many dimensions of the residual stream carry a composition, and the first of them.

    Those that carry most are taken away one after the other, until it is no more than chance.
    """
    at, writer, to, reader = (int(n) for end in ("writer", "reader") for n in pair[end].split("."))
    one, layer = found.layers[at], found.layers[to]
    scaled = (layer.norm[:, None] * own[reader] for own in (layer.query, layer.key, layer.value))
    query, key, value = (own - own.mean(0) for own in scaled)  # [D, K] each
    second = {"Q": query @ key.T, "K": key @ query.T, "V": value @ layer.out[reader]}[pair["kind"]]
    first = torch.linalg.qr(one.value[writer], mode="r").R @ one.out[writer]  # [K, D]
    first, second = first / first.norm(), second / second.norm()
    order = (first.norm(dim=0) * second.norm(dim=1)).argsort(descending=True)
    left = (float((first[:, order[n:]] @ second[order[n:]]).norm()) for n in range(len(order)))
    count = next(n for n, score in enumerate(left) if score < pair["baseline"])
    return {"carried_by": count, "first": order[: min(count, 3)].tolist()}


def draw_gpt2(folder: Path, known: dict[str, Any]) -> None:
    """Draw and write down what was measured on GPT-2 small's attention weights."""
    above = {name: torch.tensor(rows) - known["baseline"] for name, rows in known["keys"].items()}
    unit = "composition above chance"
    save_panels(
        folder / "keys.png",
        [
            Panel(
                f"what the keys of {name} read",
                rows,
                unit,
                centred=True,
                rows="layer of the writer",
            )
            for name, rows in above.items()
        ],
        "GPT-2 small: which earlier heads feed two induction heads",
    )
    gain, overlap = named(known["gain"]), known["overlap"]
    two = list(combinations(range(len(known["gain"][0])), 2))
    alike = sorted(
        (value, "{0}.{1} and {0}.{2}".format(layer, *two[at]))
        for layer, row in enumerate(overlap)
        for at, value in enumerate(row)
    )
    lines = [
        f"gain: lowest {gain[0][1]} {gain[0][0]:.1f}, highest {gain[-1][1]} {gain[-1][0]:.1f}",
        f"overlap of two heads: {mean(chain(*overlap)):.3f} on average, "
        f"by chance {known['chance']:.3f}",
        *(f"  {name}: {value:.3f}" for value, name in alike[:-3:-1]),
        *(f"  layer {layer}: {mean(overlap[layer]):.3f} on average" for layer in (0, 10)),
        f"heads mixed by the median mode: {median(known['heads_mixed']):.1f} of 12; "
        f"of a random matrix: {known['noise_mixes']:.1f}",
    ]
    write(folder / "gpt2.txt", lines)
    rows = []
    for name, scores in known["keys"].items():
        best = "  ".join(f"{writer} {score:.3f}" for score, writer in named(scores)[:-6:-1])
        rows.append(f"keys of {name}:  {best}")
    write(folder / "keys.txt", [*rows, f"chance: {known['baseline']:.4f}"])
    rows = ["kind  writer  reader  score  dimensions of the residual stream that carry it"]
    for one in known["strongest"]:
        few = ", ".join(str(at) for at in one["first"])
        which = f"{one['carried_by']}" + (f" ({few})" if one["carried_by"] <= 3 else "")
        rows.append(
            f"{one['kind']:<4}  {one['writer']:<6}  {one['reader']:<6}  {one['score']:.3f}  {which}"
        )
    write(folder / "strongest.txt", rows)


def named(rows: list[list[float]]) -> list[tuple[float, str]]:
    """Return numbers with the names of their heads, the smallest first."""
    return sorted(
        (one, f"{at}.{head}") for at, row in enumerate(rows) for head, one in enumerate(row)
    )


def rounded(values: torch.Tensor) -> Any:
    """Return numbers as JSON holds them, to six digits."""
    if values.dim() == 0:
        return round(float(values), 6)
    return [rounded(one) for one in values]


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--published", type=Path, help="GPT-2 small's weights, to measure anew")
    asked = parser.parse_args()
    main(asked.steps, published=asked.published)
