"""Changing heads of the live model, undone exactly on leaving."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.lens.taps import check_heads, check_layers, hooked
from clearhead.model import GPT

Change = Callable[[Float[Tensor, "B T H K"]], Float[Tensor, "B T H K"]]


@contextmanager
def edit(model: GPT, layer: int, change: Change) -> Iterator[GPT]:
    """Change the heads' outputs z of a layer before they meet the output projection.

    Edits within each other follow one another, the outer one first. Weights are never touched, so
    that the model is bit for bit what it was after the block, also after an exception. What
    `observe` shows of z is what it was before the edits that are made inside it.

    Args:
        model: The model.
        layer: Which block.
        change: Given z, returns another; it must leave the tensor that it is given as it is.

    Raises:
        ClearheadError: There is no such layer, or the model is compiled.
    """
    check_layers(model, [layer])
    block: Any = model.blocks[layer]

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = torch.unflatten(given[0], -1, (model.config.n_heads, -1))  # [B, T, H, K]
        return (change(z).flatten(-2),)

    with hooked(model), block.attention.out_proj.register_forward_pre_hook(before):
        yield model


@contextmanager
def mix_heads(model: GPT, layer: int, rows: Mapping[int, Mapping[int, float]]) -> Iterator[GPT]:
    """Put combinations of heads in the place of heads: `{0: {1: 1.0, 3: -1.0}}` is h1 − h3 in 0.

    Args:
        model: The model.
        layer: Which block.
        rows: For each head that changes, how much of which heads goes into it; all are read before
            any changes.

    Raises:
        ClearheadError: There is no such layer or head.
    """
    n_heads = model.config.n_heads
    check_heads(n_heads, [*rows, *(head for row in rows.values() for head in row)])
    matrix = torch.eye(n_heads, dtype=torch.float64)
    for head, row in rows.items():
        matrix[head] = 0.0
        for other, much in row.items():
            matrix[head, other] = much
    changed = list(rows)

    def change(z: Tensor) -> Tensor:
        z = z.clone()
        combined = torch.einsum("gh,bthk->btgk", matrix[changed].to(z), z)
        z[:, :, changed] = combined
        return z

    with edit(model, layer, change):
        yield model


@contextmanager
def scale_heads(model: GPT, layer: int, factors: Mapping[int, float]) -> Iterator[GPT]:
    """Make heads of a layer louder or softer: 0 silences one, −1 flips it.

    Args:
        model: The model.
        layer: Which block.
        factors: By how much, for each head that changes.

    Raises:
        ClearheadError: There is no such layer or head.
    """
    with mix_heads(model, layer, {head: {head: factor} for head, factor in factors.items()}):
        yield model


@contextmanager
def swap_heads(model: GPT, layer: int, one: int, other: int) -> Iterator[GPT]:
    """Let two heads of a layer be read in each other's place.

    Raises:
        ClearheadError: There is no such layer or head.
    """
    with mix_heads(model, layer, {one: {other: 1.0}, other: {one: 1.0}}):
        yield model


@contextmanager
def replace_head(
    model: GPT, layer: int, head: int, value: Float[Tensor, "*#BT K"]
) -> Iterator[GPT]:
    """Put given numbers in the place of a head's output z_h, the same ones for every token or not.

    Args:
        model: The model.
        layer: Which block.
        head: Which head.
        value: What takes its place: [K], [T, K] or [B, T, K].

    Raises:
        ClearheadError: There is no such layer or head.
    """
    check_heads(model.config.n_heads, [head])

    def change(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, head] = value.to(z)
        return z

    with edit(model, layer, change):
        yield model


@contextmanager
def identity_projection(model: GPT, layer: int) -> Iterator[GPT]:
    """Let a layer's W_O be the identity: the heads are laid side by side and never mixed.

    Raises:
        ClearheadError: There is no such layer, or the model is compiled.
    """
    check_layers(model, [layer])
    block: Any = model.blocks[layer]

    def after(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
        bias: Any = module.bias
        return given[0] if bias is None else given[0] + bias

    with hooked(model), block.attention.out_proj.register_forward_hook(after):
        yield model
