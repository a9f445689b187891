"""The output projection on an example that one can read, and the mistake that is often made."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.lens.heads import SPLIT, exact, parts, split
from clearhead.lens.mixing import example_projection
from clearhead.lens.result import Result, array, prove
from clearhead.lens.sources import check_position
from clearhead.lens.taps import check_layers, run
from clearhead.lens.weights import weights
from clearhead.model import GPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Example(Result):
    """Four heads of width 8 with made-up numbers, through a projection that one can read."""

    z: Float[Tensor, "H K"] = array("head", "channel", unit="made up")
    """What the heads say: h + 1 and a tenth a channel."""
    out: Float[Tensor, "H K D"] = array("head", "channel", "column", unit="made up")
    """W_O: h1 − h3, twice h0, and the mean of all, each in 8 columns; 8 stay empty."""
    contributions: Float[Tensor, "H D"] = array("head", "column", unit="made up")
    """r_h = z_h W_O[h]."""
    output: Float[Tensor, " D"] = array("column", unit="made up")
    """The concatenated z, times W_O as one matrix."""
    flipped: Float[Tensor, " D"] = array("column", unit="made up")
    """The same with head 3 flipped."""
    unmixed: Float[Tensor, " D"] = array("column", unit="made up")
    """The same with the identity for W_O: the concatenation itself."""


def worked_example() -> Example:
    """Compute the example; its proof is that the heads' contributions add up to the output."""
    n_heads, head_dim = 4, 8
    z = torch.arange(n_heads)[:, None] + 1 + torch.arange(head_dim) / 10  # [H, K]
    out = example_projection(n_heads, head_dim)
    whole = out.flatten(0, 1)  # [H·K, D]
    contributions = split(z, out)
    output = z.flatten() @ whole
    flip = torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None]
    return Example(
        proof=prove(SPLIT, contributions.sum(0), output),
        z=z,
        out=out,
        contributions=contributions,
        output=output,
        flipped=(flip * z).flatten() @ whole,
        unmixed=z.flatten() @ torch.eye(n_heads * head_dim),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Trap(Result):
    """What a head adds, beside what a slice of the *output* would say that it adds.

    The slices add up to the output as well, which is why the mistake is not noticed.
    """

    strength: Float[Tensor, " H"] = array("head", unit="norm in the residual stream")
    """‖r_h‖, as it is."""
    slice_strength: Float[Tensor, " H"] = array("head", unit="norm in the residual stream")
    """The norm of the h-th slice of K columns of the output, which mixes all heads."""
    cosine: Float[Tensor, " H"] = array("head", unit="cosine")
    """How far the two point the same way."""
    layer: int
    """Which layer."""
    position: int
    """Which token."""


@torch.no_grad()
def trap(model: GPT, token_ids: Int[Tensor, "1 T"], layer: int, *, position: int = -1) -> Trap:
    """Put the wrong way to look at a head beside the right one.

    Raises:
        ClearheadError: There is no such layer or token, or the heads' parts do not add up.
    """
    check_layers(model, [layer])
    row = check_position(token_ids, position)
    seen = run(model, token_ids, "z", "attention", layers=[layer])
    one = weights(model).layers[layer]
    z, output, bias = parts(seen, one, layer, fold_value_bias=False)
    z, whole = z[0, row].to(exact(z)), output[0, row].to(exact(z))
    added = split(z, one.out.to(z))  # [H, D]
    a = whole if bias is None else whole - bias.to(z)
    slices = a.view(len(z), -1)  # [H, K]: columns of the output, cut as if they were heads
    inner = (added.view(len(z), *slices.shape).diagonal().T * slices).sum(-1)  # [H]
    return Trap(
        proof=prove(SPLIT, added.sum(0), a.to(output.dtype)),
        strength=added.norm(dim=-1).cpu(),
        slice_strength=slices.norm(dim=-1).cpu(),
        cosine=(inner / added.norm(dim=-1) / slices.norm(dim=-1)).nan_to_num(0.0).cpu(),
        layer=layer,
        position=row,
    )
