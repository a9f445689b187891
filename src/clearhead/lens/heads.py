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

from clearhead.errors import ClearheadError
from clearhead.lens.result import Proof, Result, array, prove
from clearhead.lens.taps import Taps, check_heads, check_layers, patterns, run
from clearhead.lens.weights import LayerWeights, weights
from clearhead.model import GPT

SPLIT = "sum of parts − whole"
_ROWS = 128


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
def heads(
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
        _layer(*_parts(seen, all_weights[layer], layer, fold_value_bias), all_weights[layer].out)
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


def _parts(
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
    exact = _exact(z)
    z, out = z.to(exact), out.to(exact)
    whole = output.to(exact)
    a = whole if bias is None else whole - bias.to(exact)  # [B, T, D]
    proof = _prove_split(z, out, a, output)
    inner = torch.einsum("bthk,bthk->bth", z, (a @ out.flatten(0, 1).T).view(z.shape))  # ⟨r_h, a⟩
    size = inner.sum(-1, keepdim=True)  # ‖a‖², as the parts have it
    return _ratio(inner, size), _norms(z, out), _ratio(inner.sum((0, 1)), size.sum()), proof


def _exact(tensor: Tensor) -> torch.dtype:
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
    total = flat[:, 0] @ out[0]  # [B·T, D]
    for head in range(1, len(out)):
        total.addmm_(flat[:, head], out[head])
    whole = a.to(output.dtype)
    return prove(SPLIT, total, whole.flatten(0, 1), scale=float(output.abs().max()))


def _norms(z: Float[Tensor, "B T H K"], out: Float[Tensor, "H K D"]) -> Float[Tensor, "B T H"]:
    """Return ‖z_h @ W_O[h]‖ by way of W_O[h] W_O[h]ᵀ, which is only K wide."""
    gram = out @ out.mT  # [H, K, K]
    through = torch.einsum("bthk,hkj->bthj", z, gram)
    return (through * z).sum(-1).clamp_min(0).sqrt()


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
def sources(
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
        total = value.new_zeros(len(wanted), len(value), dtype=_exact(value))  # [h, T]
        for start in range(0, len(rows), _ROWS):
            some = list(rows[start : start + _ROWS])
            alpha = patterns(seen["q", layer], seen["k", layer], heads=wanted, rows=some)[0]
            rebuilt = torch.einsum("hrt,thk->rhk", alpha, value)
            proofs.append(prove("sum over the tokens − the head's output", rebuilt, z[some]))
            total += alpha.sum(1)
        mean = total / len(rows)
        attention.append(mean)
        out = all_weights[layer].out[wanted].to(mean)
        strength.append(mean * _norms(value[None].to(mean), out)[0].T)
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
def pairs(
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
        ClearheadError: As `heads`.
    """
    chosen = check_layers(model, layers)
    seen = run(model, token_ids, "z", "attention", layers=chosen)
    rows, proofs = [], []
    for layer in chosen:
        one = weights(model).layers[layer]
        z, output, bias = _parts(seen, one, layer, fold_value_bias=False)
        exact = _exact(z)
        flat, out = z.flatten(0, 1).flatten(1).to(exact), one.out.flatten(0, 1).to(exact)
        a = output.flatten(0, 1).to(exact) - (0.0 if bias is None else bias.to(exact))  # [N, D]
        metric = out @ out.T  # [H·K, H·K]
        gram = _by_head(flat.T @ flat / len(flat) * metric, len(one.out))
        mean = flat.mean(0)
        centred = gram - _by_head(torch.outer(mean, mean) * metric, len(one.out))
        size = a.square().sum(-1)  # [N]
        strength = _norms(z.to(exact), one.out.to(exact)).flatten(0, 1).sum(-1)  # [N]
        whole = size.mean().to(output.dtype)
        proofs.append(
            prove("sum of pairs − ‖a‖²", gram.sum(), whole, scale=float(gram.abs().sum()))
        )
        lost = 1 - size / strength.square().clamp_min(torch.finfo(exact).tiny)
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
