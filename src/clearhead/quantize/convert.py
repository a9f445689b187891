"""A model with 8 or 4 bits a weight, from one with all of them."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.model.gpt import Block
from clearhead.model.linear import Linear
from clearhead.quantize.linear import (
    BITS,
    GROUPS,
    LARGEST,
    QuantizedEmbedding,
    QuantizedLinear,
    pack,
    padded,
)

Rounded = tuple[Int8[Tensor, "N padded"], Float16[Tensor, "N groups"]]
"""Whole numbers, rows padded, and the scales of their groups."""

_SHRINKS = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)}


def quantize_nearest(model: GPT, bits: int, group: int = 64) -> GPT:
    """Round every weight matrix of a model to the nearest whole numbers, in place.

    Norms, biases and the position embedding stay as they are; a tied head and the token embedding
    share one matrix.

    Returns:
        The model.

    Raises:
        ClearheadError: `bits` or `group` is none of those there are, a weight is not finite or too
            large, or the model is quantised already.
    """
    check(model, bits, group)
    for parent, name, linear in linears(model):
        swap(parent, name, linear, *round_to_nearest(linear.weight.detach(), bits, group), bits)
    swap_head(model, bits, lambda weight: round_to_nearest(weight, bits, group))
    return model


def check(model: GPT, bits: int, group: int) -> None:
    """Refuse what cannot be quantised.

    Raises:
        ClearheadError: As `quantize_nearest`.
    """
    check_sizes(bits, group)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            raise ClearheadError(f"the model is quantised already: {name} has {module.bits} bits")
        if isinstance(module, nn.Linear) and type(module) is not Linear:
            raise ClearheadError(
                f"{name} is a {type(module).__name__}; merge an adapter before you quantise"
            )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ClearheadError(f"{name} has weights that are not finite numbers")


def check_sizes(bits: int, group: int) -> None:
    """Refuse numbers of bits and sizes of groups that there are not.

    Raises:
        ClearheadError: As `quantize_nearest`.
    """
    if bits not in BITS:
        raise ClearheadError(f"bits is {bits!r}; it must be 8 or 4")
    if group not in GROUPS:
        raise ClearheadError(f"group is {group!r}; it must be {', '.join(map(str, GROUPS))}")


def is_quantized(model: GPT) -> bool:
    """Say whether a model's weights have 8 or 4 bits."""
    return isinstance(model.head, QuantizedLinear)


def linears(model: GPT) -> Iterator[tuple[nn.Module, str, Linear]]:
    """Yield the blocks' linear layers in the order of computation, with their parents and names."""
    for block in cast("list[Block]", model.blocks):
        yield from linears_of(block)


def linears_of(block: Block) -> Iterator[tuple[nn.Module, str, Linear]]:
    """Yield a block's linear layers as `linears` does."""
    for parent in (block.attention, block.mlp):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                yield parent, name, child


def round_to_nearest(
    weight: Float[Tensor, "N K"],
    bits: int,
    group: int,
    importance: Float[Tensor, " K"] | None = None,
) -> Rounded:
    """Round each group of a row's weights to the multiples of a scale.

    At 4 bits, of some scales that cut off the largest weights and of that which does not, the one
    with the smallest squared error is taken, in which columns count by their importance.
    """
    largest = LARGEST[bits]
    groups = in_groups(weight, group)  # [N, groups, group]
    counts = 1.0 if importance is None else in_groups(importance[None], group)
    widest = groups.abs().amax(-1) / largest  # [N, groups]
    best = torch.full_like(widest, torch.inf)
    scales = torch.ones_like(widest, dtype=torch.float16)
    for shrink in _SHRINKS[bits]:
        candidate = storable(widest * shrink)
        error = (groups - nearest(groups, candidate, bits) * candidate[..., None].float()).square()
        total = (error * counts).sum(-1)
        scales = torch.where(total < best, candidate, scales)
        best = torch.minimum(total, best)
    return nearest(groups, scales, bits).flatten(1).to(torch.int8), scales


def nearest(
    groups: Float[Tensor, "N groups group"], scales: Float16[Tensor, "N groups"], bits: int
) -> Float[Tensor, "N groups group"]:
    """Return the whole numbers nearest to weights, given their scales."""
    return (groups / scales[..., None].float()).round_().clamp_(-LARGEST[bits], LARGEST[bits])


def storable(scales: Float[Tensor, "*n"]) -> Float16[Tensor, "*n"]:
    """Return scales as they are stored: never zero.

    Raises:
        ClearheadError: One is too large for float16.
    """
    stored = scales.to(torch.float16)
    if stored.isinf().any():
        raise ClearheadError(f"a weight is too large to be quantised: a scale of {scales.max():g}")
    return torch.where(stored == 0, torch.finfo(torch.float16).smallest_normal, stored)


def in_groups(weight: Float[Tensor, "N K"], group: int) -> Float[Tensor, "N groups group"]:
    """Cut the rows into groups, padded with zeros to whole blocks."""
    rows, width = weight.shape
    whole = weight.new_zeros(rows, padded(width), dtype=torch.float32)
    whole[:, :width] = weight
    return whole.view(rows, -1, group)


def swap(
    parent: nn.Module,
    name: str,
    linear: Linear,
    values: Int8[Tensor, "N padded"],
    scales: Float16[Tensor, "N groups"],
    bits: int,
) -> None:
    """Put a quantised layer in a linear layer's place."""
    layer = QuantizedLinear(pack(values, bits), scales, linear.bias, linear.in_features, bits)
    setattr(parent, name, layer.train(linear.training))


def swap_head(
    model: GPT, bits: int, round_weight: Callable[[Float[Tensor, "V D"]], Rounded]
) -> None:
    """Put quantised matrices in place of the head and the token embedding, one if they are tied."""
    embedding = model.token_embedding.weight.detach()
    swap(model, "head", model.head, *round_weight(model.head.weight.detach()), bits)
    matrix = cast(QuantizedLinear, model.head)
    if not model.config.tied_head:
        values, scales = round_to_nearest(embedding, bits, matrix.group)
        matrix = QuantizedLinear(pack(values, bits), scales, None, embedding.shape[1], bits)
    found = QuantizedEmbedding(matrix).to(embedding.dtype).train(model.training)
    model.token_embedding = cast(nn.Embedding, found)
