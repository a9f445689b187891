"""Which heads the output projection mixes, and how much they share; of the weights alone.

With row vectors, `z @ W_O` reads along the columns u_i of U in W_O = U S Vᵀ and writes s_i times
what it read along v_i. Cut by head, u_i tells which heads that mode mixes, and with which signs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.lens.heads import exact, worst
from clearhead.lens.result import Result, array, prove
from clearhead.lens.weights import Weights, weights
from clearhead.model import GPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixing(Result):
    """The modes of each layer's output projection, the strongest first.

    Modes of equal strength are not unique: any rotation of them is as good. Those of strength 0
    read what W_O ignores.
    """

    singular: Float[Tensor, "L modes"] = array("layer", "mode", unit="gain")
    """s_i: by how much a mode scales what it reads."""
    mass: Float[Tensor, "L modes H"] = array("layer", "mode", "head", unit="fraction of the mode")
    """‖u_i[h]‖²: how much of a mode reads head h; they sum to 1 over the heads."""
    signs: Float[Tensor, "L modes H"] = array("layer", "mode", "head", unit="cosine")
    """Between what a mode reads of a head and of the head that it reads most: "h1 − h3" is −1 for
    the other; 0 for a head of which it reads nothing but rounding."""
    heads_mixed: Float[Tensor, "L modes"] = array("layer", "mode", unit="heads")
    """1 / sum_h mass²: how many heads a mode reads, from 1 to H if it reads all alike."""
    gain: Float[Tensor, "L H"] = array("layer", "head", unit="Frobenius norm")
    """‖W_O[h]‖; its square is the sum of s_i² mass_ih over all modes."""
    layers: tuple[int, ...]
    """Which layers these are."""


@torch.no_grad()
def mixing_modes(
    given: GPT | Weights, *, layers: Sequence[int] | None = None, modes: int | None = None
) -> Mixing:
    """Measure which heads each mode of the output projection mixes.

    Args:
        given: A model, or its attention weights.
        layers: Which layers; all by default.
        modes: How many modes of each, the strongest; all D by default.

    Raises:
        ClearheadError: There is no such layer or mode, or U S Vᵀ is not W_O.
    """
    found = weights(given)
    chosen = _check_layers(found, layers)
    if modes is not None and not 1 <= modes <= found.d_model:
        raise ClearheadError(f"{modes} modes are asked for; give 1 to {found.d_model}, which is D")
    singular, mass, signs, gain, proofs = [], [], [], [], []
    for layer in chosen:
        out = _exact_out(found, layer)
        flat = out.flatten(0, 1)  # [H·K, D]
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        rebuilt = left * values @ right
        proofs.append(prove("U S Vᵀ − W_O", rebuilt, flat, scale=float(values[0])))
        blocks = left.T[:modes].unflatten(1, (found.n_heads, -1))  # [modes, H, K]
        singular.append(values[:modes])
        mass.append(blocks.square().sum(-1))  # [modes, H]
        strongest = mass[-1].argmax(-1)  # [modes]
        at = torch.arange(len(blocks), device=blocks.device)
        signs.append(_cosines(blocks)[at, strongest])  # [modes, H]
        gain.append(out.norm(dim=(1, 2)))
    masses = torch.stack(mass).cpu()
    return Mixing(
        proof=worst(proofs),
        singular=torch.stack(singular).cpu(),
        mass=masses,
        signs=torch.stack(signs).cpu(),
        heads_mixed=1 / masses.square().sum(-1),
        gain=torch.stack(gain).cpu(),
        layers=tuple(chosen),
    )


@torch.no_grad()
def pair_signs(given: GPT | Weights, layer: int, mode: int) -> Float[Tensor, "H H"]:
    """Return the cosine between what a mode reads of two heads, u_i[h] and u_i[k], for each pair.

    1 is "h + k": the mode adds them up channel by channel. −1 is "h − k".

    Args:
        given: A model, or its attention weights.
        layer: Which layer.
        mode: Which of its modes, counted from the strongest.

    Returns:
        The cosines; 0 for a head of which the mode reads nothing but rounding.

    Raises:
        ClearheadError: There is no such layer or mode.
    """
    found = weights(given)
    _check_layers(found, [layer])
    if not 0 <= mode < found.d_model:
        raise ClearheadError(f"there is no mode {mode}; a layer has {found.d_model}, from 0")
    flat = _exact_out(found, layer).flatten(0, 1)  # [H·K, D]
    left, _, _ = torch.linalg.svd(flat, full_matrices=False)
    return _cosines(left.T[mode].unflatten(0, (found.n_heads, -1))).cpu()


def _cosines(blocks: Float[Tensor, "*modes H K"]) -> Float[Tensor, "*modes H H"]:
    """Return the cosine of each pair of heads; 0 for blocks that hold nothing but rounding."""
    mass = blocks.square().sum(-1, keepdim=True)
    is_read = mass > torch.finfo(mass.dtype).eps  # of a sum of 1
    unit = torch.where(is_read, blocks / mass.sqrt(), 0.0)
    return (unit @ unit.mT).clamp(-1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Overlap(Result):
    """How much the heads of a layer write into the same part of the residual stream."""

    overlap: Float[Tensor, "L H H"] = array("layer", "head", "other", unit="fraction of K")
    """‖Q_hᵀ Q_k‖² / K, with an orthonormal basis Q_h of what head h writes into.

    1 if both write into the same K dimensions, 0 if into orthogonal ones.
    """
    chance: float
    """K / D: what subspaces have in common on average that lie at random."""
    layers: tuple[int, ...]
    """Which layers these are."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, with the level of chance."""
        return {**super().to_json(), "chance": self.chance}


@torch.no_grad()
def head_overlap(given: GPT | Weights, *, layers: Sequence[int] | None = None) -> Overlap:
    """Measure how much the subspaces that the heads write into overlap.

    Args:
        given: A model, or its attention weights.
        layers: Which layers; all by default.

    Raises:
        ClearheadError: There is no such layer, or Q R is not W_Oᵀ.
    """
    found = weights(given)
    chosen = _check_layers(found, layers)
    rows, proofs = [], []
    for layer in chosen:
        out = _exact_out(found, layer)
        basis, rest = torch.linalg.qr(out.mT)  # [H, D, K], [H, K, K]
        scale = float(rest.norm(dim=(1, 2)).max())
        proofs.append(prove("Q R − W_Oᵀ", basis @ rest, out.mT, scale=scale))
        flat = basis.permute(1, 0, 2).flatten(1)  # [D, H·K]
        inner = (flat.T @ flat).view(found.n_heads, found.head_dim, found.n_heads, -1)
        rows.append(inner.square().sum((1, 3)) / found.head_dim)  # [H, H]
    return Overlap(
        proof=worst(proofs),
        overlap=torch.stack(rows).cpu(),
        chance=found.head_dim / found.d_model,
        layers=tuple(chosen),
    )


def example_projection(n_heads: int = 4, head_dim: int = 8) -> Float[Tensor, "H K D"]:
    """Return a W_O that one can read: it writes h1 − h3, twice h0, and the mean of all heads.

    Each takes K of the D = H·K columns of the output, channel by channel; the rest stays empty.

    Args:
        n_heads: Heads H, at least 4.
        head_dim: Width K of each.

    Raises:
        ClearheadError: There are fewer than 4 heads.
    """
    if n_heads < 4:
        raise ClearheadError(
            f"n_heads={n_heads}; the example speaks of h0 to h3, so give 4 or more"
        )
    coefficients = torch.zeros(n_heads, n_heads)  # [head, block of columns]
    coefficients[1, 0], coefficients[3, 0] = 1.0, -1.0
    coefficients[0, 1] = 2.0
    coefficients[:, 2] = 1 / n_heads
    return torch.einsum("hb,kj->hkbj", coefficients, torch.eye(head_dim)).flatten(2)  # [H, K, D]


def _check_layers(found: Weights, layers: Sequence[int] | None) -> list[int]:
    """Return the chosen layers, all by default."""
    chosen = list(range(found.n_layers)) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < found.n_layers:
            raise ClearheadError(
                f"there is no layer {layer}; the model has {found.n_layers}, from 0"
            )
    return chosen


def _exact_out(found: Weights, layer: int) -> Float[Tensor, "H K D"]:
    out = found.layers[layer].out
    return out.to(exact(out))
