"""Weights rounded one column after the other, the rest making up for each error.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers"; columns are taken by the size of their inputs, largest first, within scales that are
fixed beforehand.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.model import GPT
from clearhead.model.gpt import Block
from clearhead.model.linear import Linear
from clearhead.quantize.convert import (
    Rounded,
    check,
    linears_of,
    round_to_nearest,
    swap,
    swap_head,
)
from clearhead.quantize.linear import LARGEST, padded

DAMPING = 0.01
_AT_ONCE = 128


@torch.no_grad()
def quantize_calibrated(
    model: GPT,
    bits: int,
    group: int,
    texts: Sequence[Int[Tensor, "_ T"]],
    on_block: Callable[[int], None] = lambda _: None,
) -> GPT:
    """Round every weight matrix so that the layers' outputs on some texts change least, in place.

    Layer after layer, each sees what the layers before it give once they are rounded. Which
    matrices, is as in `quantize_nearest`.

    Args:
        model: The model; a language model.
        bits: 8 or 4.
        group: Neighbouring weights of a row that share a scale.
        texts: Token ids, in batches; some thousand tokens at least, more than a layer has inputs.
        on_block: Called with each block's number, from 1, before it is rounded.

    Returns:
        The model.

    Raises:
        ClearheadError: As `quantize_nearest`.
    """
    check(model, bits, group)
    last = torch.zeros(model.config.d_model, model.config.d_model)
    for ids in texts:
        last += _square(model.hidden(ids))
    if model.config.tied_head:  # the rows are read as embeddings too, each of their numbers alike
        last.diagonal().add_(last.diagonal().mean())
    swap_head(model, bits, lambda weight: gptq(weight, last, bits, group))
    streams = [_embed(model, ids) for ids in texts]
    for number, block in enumerate(cast("list[Block]", model.blocks), start=1):
        on_block(number)
        for parent, name, linear in linears_of(block):
            moments = _moments(linear, block, streams)
            swap(parent, name, linear, *gptq(linear.weight, moments, bits, group), bits)
        streams = [block(x) for x in streams]
    return model


def gptq(
    weight: Float[Tensor, "N K"], moments: Float[Tensor, "K K"], bits: int, group: int
) -> Rounded:
    """Round a matrix so that its products with some inputs change least.

    Args:
        weight: The matrix.
        moments: The sum of `x xᵀ` over the inputs.
        bits: 8 or 4.
        group: Neighbouring weights of a row that share a scale.

    Raises:
        ClearheadError: A weight is too large.
    """
    size = moments.diagonal()
    _, scales = round_to_nearest(weight, bits, group, size)
    order = size.argsort(descending=True)
    wide = scales.float().repeat_interleave(group, 1)[:, order]  # [N, K]
    rest = weight.float()[:, order]
    values = torch.zeros(len(weight), padded(weight.shape[1]), dtype=torch.int8)
    inverse = _inverse_root(moments[order][:, order])
    largest, n_columns = LARGEST[bits], weight.shape[1]
    for start in range(0, n_columns, _AT_ONCE):
        end = min(start + _AT_ONCE, n_columns)
        errors = torch.empty(len(weight), end - start)
        for column in range(start, end):
            now, scale = rest[:, column], wide[:, column]
            rounded = (now / scale).round_().clamp_(-largest, largest)
            values[:, order[column]] = rounded.to(torch.int8)
            error = (now - rounded * scale) / inverse[column, column]
            rest[:, column + 1 : end] -= error[:, None] * inverse[column, column + 1 : end]
            errors[:, column - start] = error
        rest[:, end:] -= errors @ inverse[start:end, end:]
    return values, scales


def _inverse_root(moments: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the upper triangle U with `Uᵀ U` the inverse, damped as far as it needs."""
    mean = moments.diagonal().mean().clamp_min(1e-20)
    for damping in (DAMPING, 10 * DAMPING):
        damped = moments.double() + torch.eye(len(moments)) * (damping * mean)
        root, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
    inverse: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(root), upper=True)
    return inverse.float()


def _moments(
    linear: Linear, block: Block, streams: Sequence[Float[Tensor, "_ T D"]]
) -> Float[Tensor, "K K"]:
    """Return the sum of `x xᵀ` over a layer's inputs while its block reads residual streams."""
    found = torch.zeros(linear.in_features, linear.in_features)
    hook = linear.register_forward_pre_hook(lambda _, inputs: _add(found, inputs[0]))
    try:
        for x in streams:
            block(x)
    finally:
        hook.remove()
    return found


def _add(moments: Float[Tensor, "K K"], x: Float[Tensor, "*n K"]) -> None:
    moments += _square(x)


def _square(x: Float[Tensor, "*n K"]) -> Float[Tensor, "K K"]:
    rows = x.flatten(0, -2).float()
    return rows.T @ rows


def _embed(model: GPT, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    return model.token_embedding(ids) + model.position_embedding.weight[: ids.shape[1]]
