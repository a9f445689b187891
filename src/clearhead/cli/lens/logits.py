"""`clearhead lens logits`: what each depth would predict, and which parts make a logit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from clearhead.cli import show
from clearhead.cli.lens.common import model_and_text, name, picture, show_panels, show_proof
from clearhead.cli.parse import Flag, parse, text
from clearhead.lens import Attribution, LogitLens, Panel, attribution, logit_lens
from clearhead.recipes.lens import target_token
from clearhead.tokenizer import Tokenizer

_TOP = 5
_STRONGEST = 10


@dataclass(frozen=True)
class Arguments:
    """Tell what the model would predict after each block, and what each part adds to a logit."""

    directory: Positional[Path]
    """A checkpoint, or the folder of a run: then its newest checkpoint."""
    text: str
    """What the model reads."""
    target: str | None = None
    """The token whose logit is split, with its space in front: ' Paris'; by default the likeliest
    one."""
    versus: str | None = None
    """Another token: then the difference of the two logits is split."""
    token: int = -1
    """The token after which is predicted, counted from 0, or from the end if negative."""
    fold_value_bias: Flag = False
    """Count what the values' bias adds through a head, the same for every token, to no head."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps, …"""
    plot: Path | None = None
    """Draw the heat maps into this .png or .svg file."""
    json: Flag = False
    """Print the result as one JSON object."""


def logits(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(Arguments, arguments, prog)
    path = picture(parsed.plot)
    model, tokenizer, ids, words = model_and_text(parsed.directory, parsed.text, parsed.device)
    named = [
        target_token(tokenizer, text(word, option))
        for option, word in (("--target", parsed.target), ("--versus", parsed.versus))
        if word is not None
    ]
    lens = logit_lens(model, ids, position=parsed.token, top=_TOP, targets=named)
    target = named[0] if parsed.target is not None else int(lens.top_ids[-1, 0])
    versus = named[-1] if parsed.versus is not None else None
    found = attribution(
        model,
        ids,
        target,
        versus=versus,
        position=parsed.token,
        fold_value_bias=parsed.fold_value_bias,
    )
    if parsed.json:
        show.as_json(_document(lens, found, tokenizer, words))
        return 0
    of = repr(tokenizer.decode([target]))
    if versus is not None:
        of += f" over {tokenizer.decode([versus])!r}"
    show.facts({"after": f"token {found.position}, {words[found.position]!r}", "logit": of})
    _show_lens(lens, tokenizer)
    panels = [
        Panel(f"what each head adds to the logit of {of}", found.heads, "logits", centred=True),
        Panel("the same, the LayerNorm let free", found.heads_unfrozen, "logits", centred=True),
    ]
    show_panels(panels, path, f"Direct attribution of {of}", found.proof)
    show.table("strongest parts", ("part", "adds", "LayerNorm let free"), _strongest(found))
    show.facts({"sum, the model's own logit": f"{found.logit:.4f}"})
    show_proof(found.proof)
    show_proof(lens.proof)
    return 0


def _show_lens(lens: LogitLens, tokenizer: Tokenizer) -> None:
    rows = []
    for depth in range(len(lens.entropy)):
        ids, probabilities = lens.top_ids[depth].tolist(), lens.top_probabilities[depth].tolist()
        likely = "  ".join(
            f"{tokenizer.decode([one])!r} {p:.1%}"
            for one, p in zip(ids, probabilities, strict=True)
        )
        row = [_depth(depth), float(lens.entropy[depth]), likely]
        for at in range(len(lens.targets)):
            rank, p = int(lens.target_ranks[depth, at]), lens.target_probabilities[depth, at]
            row.append(f"{rank + 1:,} ({float(p):.1%})")
        rows.append(row)
    targets = [f"rank of {tokenizer.decode([one])!r}" for one in lens.targets]
    columns = ("after", "entropy (nats)", "would go on with", *targets)
    show.table("logit lens: the last LayerNorm and the unembedding after each block", columns, rows)


def _depth(depth: int) -> str:
    return "embeddings" if depth == 0 else f"block {depth - 1}"


def _parts(found: Attribution) -> dict[str, tuple[float, float | None]]:
    """Return every part's name with what it adds, frozen and unfrozen."""
    parts: dict[str, tuple[float, float | None]] = {
        "token embedding": (float(found.embedding[0]), None),
        "position embedding": (float(found.embedding[1]), None),
        "constant ⟨β, W_U⟩": (found.constant, None),
    }
    n_layers, n_heads = found.heads.shape
    for layer in range(n_layers):
        parts[f"MLP {layer}"] = (float(found.mlps[layer]), float(found.mlps_unfrozen[layer]))
        parts[f"bias of attention {layer}"] = (float(found.attention_bias[layer]), None)
        for head in range(n_heads):
            free = float(found.heads_unfrozen[layer, head])
            parts[f"head {name(layer, head)}"] = (float(found.heads[layer, head]), free)
    return parts


def _strongest(found: Attribution) -> list[Sequence[object]]:
    parts = sorted(_parts(found).items(), key=lambda part: -abs(part[1][0]))
    return [
        (part, f"{adds:+.4f}", "" if free is None else f"{free:+.4f}")
        for part, (adds, free) in parts[:_STRONGEST]
    ]


def _document(
    lens: LogitLens, found: Attribution, tokenizer: Tokenizer, words: list[str]
) -> dict[str, Any]:
    return {
        "tokens": words,
        "position": found.position,
        "target": tokenizer.decode([found.target]),
        "versus": None if found.versus is None else tokenizer.decode([found.versus]),
        "logit": found.logit,
        "constant": found.constant,
        "attribution": found.to_json(),
        "lens": [
            {
                "after": _depth(depth),
                "entropy": float(lens.entropy[depth]),
                "top": [
                    {"token": tokenizer.decode([int(one)]), "probability": float(p)}
                    for one, p in zip(
                        lens.top_ids[depth], lens.top_probabilities[depth], strict=True
                    )
                ],
                "targets": [
                    {
                        "token": tokenizer.decode([target]),
                        "rank": int(lens.target_ranks[depth, at]) + 1,
                        "probability": float(lens.target_probabilities[depth, at]),
                    }
                    for at, target in enumerate(lens.targets)
                ],
            }
            for depth in range(len(lens.entropy))
        ],
        "proofs": [str(found.proof), str(lens.proof)],
    }
