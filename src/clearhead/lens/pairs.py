"""How the heads of a layer agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.lens.heads import exact, norms, parts, worst
from clearhead.lens.result import Result, array, prove
from clearhead.lens.taps import check_layers, run
from clearhead.lens.weights import weights
from clearhead.model import GPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs(Result):
    """Which heads of a layer work together, and which against each other."""

    gram: Float[Tensor, "L H H"] = array("layer", "head", "other", unit="squared norm")
    """G_hk = ⟨r_h, r_k⟩, averaged over tokens; it sums to the mean of ‖a‖²."""
    cosine: Float[Tensor, "L H H"] = array("layer", "head", "other", unit="cosine")
    """G normalised: above 0 they reinforce, below 0 they cancel each other."""
    centred: Float[Tensor, "L H H"] = array("layer", "head", "other", unit="correlation")
    """The same with each head's mean over the tokens taken off: what varies together."""
    cancellation: Float[Tensor, " L"] = array("layer", unit="fraction")
    """1 − ‖a‖² / (sum_h ‖r_h‖)², averaged over tokens; 0 if all heads agree."""
    layers: tuple[int, ...]
    """Which layers these are."""


@torch.no_grad()
def head_pairs(
    model: GPT,
    token_ids: Int[Tensor, "B T"],
    *,
    layers: Sequence[int] | None = None,
) -> Pairs:
    """Measure how the heads of each layer agree, over all tokens.

    It takes the second moments of z [H·K, H·K] and W_O W_Oᵀ, so that no r_h is ever built.

    Args:
        model: The model.
        token_ids: Texts.
        layers: Which layers; all by default.

    Raises:
        ClearheadError: As `head_contributions`.
    """
    chosen = check_layers(model, layers)
    seen = run(model, token_ids, "z", "attention", layers=chosen)
    rows, proofs = [], []
    for layer in chosen:
        one = weights(model).layers[layer]
        z, output, bias = parts(seen, one, layer, fold_value_bias=False)
        z = z.to(exact(z))
        flat, out = z.flatten(0, 1).flatten(1).to(z), one.out.flatten(0, 1).to(z)
        a = output.flatten(0, 1).to(z) - (0.0 if bias is None else bias.to(z))  # [N, D]
        metric = out @ out.T  # [H·K, H·K]
        gram = _by_head(flat.T @ flat / len(flat) * metric, len(one.out))
        mean = flat.mean(0)
        centred = gram - _by_head(torch.outer(mean, mean) * metric, len(one.out))
        size = a.square().sum(-1)  # [N]
        strength = norms(z, one.out.to(z)).flatten(0, 1).sum(-1)  # [N]
        whole = size.mean().to(output.dtype)
        proofs.append(
            prove("sum of pairs − ‖a‖²", gram.sum(), whole, scale=float(gram.abs().sum()))
        )
        lost = 1 - size / strength.square().clamp_min(torch.finfo(z.dtype).tiny)
        rows.append((gram, _cosine(gram), _cosine(centred), lost.mean()))
    gram, cosine, centred, cancellation = (
        torch.stack(column).cpu() for column in zip(*rows, strict=True)
    )
    return Pairs(
        proof=worst(proofs),
        gram=gram,
        cosine=cosine,
        centred=centred,
        cancellation=cancellation,
        layers=tuple(chosen),
    )


def _by_head(products: Float[Tensor, "N N"], n_heads: int) -> Float[Tensor, "H H"]:
    """Sum a matrix over the blocks that belong to each pair of heads."""
    return products.reshape(n_heads, len(products) // n_heads, n_heads, -1).sum((1, 3))


def _cosine(gram: Float[Tensor, "H H"]) -> Float[Tensor, "H H"]:
    """Normalise by the diagonal; a head that does nothing has no direction, and gets 0."""
    norm = gram.diagonal().clamp_min(0).sqrt()
    return (gram / torch.outer(norm, norm)).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
