"""What each head adds to its layer's output: how much, how strongly, from where, with whom.

Head h's output z_h [T, K] meets its block of rows of the output projection, W_O[h] [K, D], and adds
`r_h = z_h @ W_O[h]` to the layer's output; with the bias b the output is `sum_h r_h + b`. The sum
without the bias is called a. None of this needs r_h for all heads and tokens at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.lens.result import Proof, Result, array, prove
from clearhead.lens.taps import Taps, check_layers, run
from clearhead.lens.weights import LayerWeights, weights
from clearhead.model import GPT
from clearhead.model.linear import linear

SPLIT = "sum of parts − whole"


@dataclass(frozen=True, eq=False, kw_only=True)
class Heads(Result):
    """How much each head adds to its layer's output, token by token."""

    share: Float[Tensor, "L B T H"] = array(
        "layer", "text", "token", "head", unit="fraction of the output"
    )
    """s_h = ⟨r_h, a⟩ / ‖a‖²: they sum to 1 over the heads; a negative one opposes the rest.

    All are 0 where the layer adds nothing but its bias.
    """
    strength: Float[Tensor, "L B T H"] = array(
        "layer", "text", "token", "head", unit="norm in the residual stream"
    )
    """‖r_h‖."""
    gain: Float[Tensor, "L H"] = array("layer", "head", unit="Frobenius norm")
    """‖W_O[h]‖, of the weights alone."""
    mean_share: Float[Tensor, "L H"] = array("layer", "head", unit="fraction of the output")
    """sum_t ⟨r_h, a⟩ / sum_t ‖a‖²: tokens count as much as the layer adds to them."""
    layers: tuple[int, ...]
    """Which layers these are."""
    proofs: tuple[Proof, ...]
    """For each layer, that the heads' parts and the bias add up to the layer's output."""

    @property
    def mean_strength(self) -> Float[Tensor, "L H"]:
        """Strength averaged over all tokens."""
        return self.strength.mean((1, 2))


@torch.no_grad()
def head_contributions(
    model: GPT,
    token_ids: Int[Tensor, "B T"],
    *,
    layers: Sequence[int] | None = None,
    fold_value_bias: bool = False,
) -> Heads:
    """Measure what each head adds to its layer's output.

    Args:
        model: The model.
        token_ids: Texts.
        layers: Which layers; all by default.
        fold_value_bias: Count what the values' bias adds through a head, b_V[h] W_O[h], the same
            for every token, to the layer's bias and not to the head.

    Raises:
        ClearheadError: There is no such layer, the text is empty or too long, or the parts do not
            add up to the whole.
    """
    chosen = check_layers(model, layers)
    seen = run(model, token_ids, "z", "attention", layers=chosen)
    all_weights = weights(model).layers
    rows = [
        _layer(*parts(seen, all_weights[layer], layer, fold_value_bias), all_weights[layer].out)
        for layer in chosen
    ]
    proofs = tuple(row[3] for row in rows)
    return Heads(
        proof=worst(proofs),
        share=torch.stack([row[0] for row in rows]).cpu(),
        strength=torch.stack([row[1] for row in rows]).cpu(),
        gain=torch.stack(
            [all_weights[layer].out.float().norm(dim=(1, 2)) for layer in chosen]
        ).cpu(),
        mean_share=torch.stack([row[2] for row in rows]).cpu(),
        layers=tuple(chosen),
        proofs=proofs,
    )


def worst(proofs: Sequence[Proof]) -> Proof:
    """Return the proof with the largest residual for its tolerance."""
    return max(proofs, key=lambda proof: proof.residual / proof.tolerance)


def split(z: Float[Tensor, "... H K"], out: Float[Tensor, "H K D"]) -> Float[Tensor, "... H D"]:
    """Return each head's part of the output, r_h = z_h @ W_O[h]; for a few tokens at a time.

    Cutting the *output* into slices and calling them heads is wrong: every column of W_O mixes all
    heads.

    Args:
        z: The heads' outputs before the projection.
        out: W_O by head.
    """
    return torch.einsum("...hk,hkd->...hd", z, out)


def parts(
    seen: Taps, layer_weights: LayerWeights, layer: int, fold_value_bias: bool
) -> tuple[Float[Tensor, "B T H K"], Float[Tensor, "B T D"], Float[Tensor, " D"] | None]:
    """Return z, the observed output, and the bias that belongs to no head."""
    z, output, bias = seen["z", layer], seen["attention", layer], layer_weights.out_bias
    if fold_value_bias and layer_weights.value_bias is not None:
        z = z - layer_weights.value_bias
        constant = split(layer_weights.value_bias, layer_weights.out).sum(0)
        bias = constant if bias is None else bias + constant
    return z, output, bias


def _layer(
    z: Float[Tensor, "B T H K"],
    output: Float[Tensor, "B T D"],
    bias: Float[Tensor, " D"] | None,
    out: Float[Tensor, "H K D"],
) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"], Float[Tensor, " H"], Proof]:
    """Return a layer's shares, strengths, shares over all tokens, and their proof."""
    z, out = z.to(exact(z)), out.to(exact(z))
    whole = output.to(z)
    a = whole if bias is None else whole - bias.to(z)  # [B, T, D]
    proof = _prove_split(z, out, a, output)
    inner = (z * linear(a, out.flatten(0, 1)).view(z.shape)).sum(-1)  # ⟨r_h, a⟩
    size = inner.sum(-1, keepdim=True)  # ‖a‖², as the parts have it
    return _ratio(inner, size), norms(z, out), _ratio(inner.sum((0, 1)), size.sum()), proof


def exact(tensor: Tensor) -> torch.dtype:
    """Return the type to add up in: at least fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _ratio(part: Float[Tensor, "..."], whole: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.where(whole > 0, part / whole, 0.0)


def _prove_split(
    z: Float[Tensor, "B T H K"],
    out: Float[Tensor, "H K D"],
    a: Float[Tensor, "B T D"],
    output: Float[Tensor, "B T D"],
) -> Proof:
    """Add the heads' parts up, one head after the other, and compare."""
    flat = z.flatten(0, 1)  # [B·T, H, K]
    total = torch.zeros_like(a).flatten(0, 1)  # [B·T, D]
    for head, block in enumerate(out):
        total += linear(flat[:, head], block.T)
    whole = a.to(output.dtype)
    return prove(SPLIT, total, whole.flatten(0, 1), scale=float(output.abs().max()))


def norms(z: Float[Tensor, "B T H K"], out: Float[Tensor, "H K D"]) -> Float[Tensor, "B T H"]:
    """Return ‖z_h @ W_O[h]‖ by way of W_O[h] W_O[h]ᵀ, which is only K wide."""
    gram = out @ out.mT  # [H, K, K]
    through = torch.einsum("bthk,hkj->bthj", z, gram)
    return (through * z).sum(-1).clamp_min(0).sqrt()
