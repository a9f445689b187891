"""From which tokens each head takes what it adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.lens.heads import exact, norms, worst
from clearhead.lens.result import Result, array, prove
from clearhead.lens.taps import check_heads, check_layers, patterns, run
from clearhead.lens.weights import weights
from clearhead.model import GPT

_ROWS = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Sources(Result):
    """From which tokens a head's part of the output at one token comes (Kobayashi et al. 2020)."""

    attention: Float[Tensor, "L h T"] = array("layer", "head", "source", unit="probability")
    """α: how much the head attends to each token."""
    strength: Float[Tensor, "L h T"] = array(
        "layer", "head", "source", unit="norm in the residual stream"
    )
    """‖α v W_O[h]‖: what comes of it in the output."""
    layers: tuple[int, ...]
    """Which layers these are."""
    heads: tuple[int, ...]
    """Which heads."""
    position: int | None
    """The token that attends; none for the average over all tokens."""


@torch.no_grad()
def source_tokens(
    model: GPT,
    token_ids: Int[Tensor, "1 T"],
    *,
    position: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Sources:
    """Measure how much each token hands to one token, or to all on average, through each head.

    Args:
        model: The model.
        token_ids: One text.
        position: The token that attends, negative ones counted from the end; the average over all
            tokens by default.
        layers: Which layers; all by default.
        heads: Which heads; all by default.

    Raises:
        ClearheadError: There is no such layer, head or position, or what the tokens hand over does
            not add up to the head's output.
    """
    chosen = check_layers(model, layers)
    wanted = check_heads(model.config.n_heads, heads)
    row = None if position is None else check_position(token_ids, position)
    rows = range(token_ids.shape[1]) if row is None else [row]
    seen = run(model, token_ids, "q", "k", "v", "z", layers=chosen)
    all_weights = weights(model).layers
    attention, strength, proofs = [], [], []
    for layer in chosen:
        value, z = seen["v", layer][0][:, wanted], seen["z", layer][0][:, wanted]  # [T, h, K]
        total = value.new_zeros(len(wanted), len(value), dtype=exact(value))  # [h, T]
        for start in range(0, len(rows), _ROWS):
            some = list(rows[start : start + _ROWS])
            alpha = patterns(seen["q", layer], seen["k", layer], heads=wanted, rows=some)[0]
            rebuilt = torch.einsum("hrt,thk->rhk", alpha, value)
            proofs.append(prove("sum over the tokens − the head's output", rebuilt, z[some]))
            total += alpha.sum(1)
        mean = total / len(rows)
        attention.append(mean)
        out = all_weights[layer].out[wanted].to(mean)
        strength.append(mean * norms(value[None].to(mean), out)[0].T)
    return Sources(
        proof=worst(proofs),
        attention=torch.stack(attention).cpu(),
        strength=torch.stack(strength).cpu(),
        layers=tuple(chosen),
        heads=tuple(wanted),
        position=row,
    )


def check_position(token_ids: Int[Tensor, "B T"], position: int) -> int:
    """Return a position counted from the beginning.

    Raises:
        ClearheadError: The text has no such token.
    """
    length = token_ids.shape[1]
    if not -length <= position < length:
        raise ClearheadError(f"there is no token {position}; the text has {length}, from 0")
    return position % length
