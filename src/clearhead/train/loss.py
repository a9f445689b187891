"""The loss of predicting each next token, without ever holding all the logits."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from clearhead.data import IGNORED, Rows
from clearhead.model import GPT

_LOGITS_AT_ONCE = 2**25
_LOGITS_IN_CACHE = 2**20
_ROWS_AT_ONCE = 2**13


def next_token_loss(model: GPT, rows: Rows) -> Float[Tensor, ""]:
    """Return the loss of what the model should say after each token, summed, in nats."""
    hidden = model.hidden(rows.inputs, documents=rows.documents)
    return summed_loss(hidden, model.head.weight, rows.targets, rows.weights)


def summed_loss(
    hidden: Float[Tensor, "B T D"],
    unembedding: Float[Tensor, "V D"],
    targets: Int[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross entropy of `targets` under softmax(hidden · unembeddingᵀ), summed, in nats.

    The logits of a large vocabulary take more memory than the rest of a small model, and most of
    its time; here they exist for a chunk of tokens at a time, and become their own gradient in
    place. The loss is taken in fp32; under autocast the matrix products run in its dtype.

    Args:
        hidden: The residual stream that the unembedding reads.
        unembedding: The head's weight.
        targets: The token that follows each position; `IGNORED` ones count nothing.
        weights: How much each target counts; 1 by default.
    """
    counts = (targets != IGNORED).to(torch.float32)
    if weights is not None:
        counts = counts * weights
    return _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1), unembedding, targets.flatten(), counts.flatten()
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "N D"],
        unembedding: Float[Tensor, "V D"],
        targets: Int[Tensor, " N"],
        counts: Float[Tensor, " N"],
    ) -> Float[Tensor, ""]:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        learn, learn_weight = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        weight = unembedding.to(dtype)
        grad_hidden = torch.empty_like(hidden) if learn else None
        grad_weight = torch.zeros_like(unembedding) if learn_weight else None
        total = torch.zeros(
            (), device=hidden.device, dtype=torch.promote_types(dtype, torch.float32)
        )
        n_chunks = -(-hidden.shape[0] * len(weight) // _LOGITS_AT_ONCE)
        chunk = -(-len(hidden) // n_chunks)
        for start in range(0, len(hidden), chunk):
            part = hidden[start : start + chunk].to(dtype)  # [C, D]
            logits = part @ weight.T  # [C, V]
            these = slice(start, start + chunk)
            total += _loss_and_gradient(logits, targets[these], counts[these], learn)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = logits @ weight
            if grad_weight is not None:
                # Sliced, for adding bf16 to fp32 makes a copy in fp32 first.
                for first in range(0, len(weight), _ROWS_AT_ONCE):
                    rows = slice(first, first + _ROWS_AT_ONCE)
                    grad_weight[rows] += logits[:, rows].T @ part
        if learn:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        to_weight = None if grad_weight is None else grad_weight.mul_(grads[0])
        return grad_hidden.mul_(grads[0]), to_weight, None, None


def _loss_and_gradient(
    logits: Float[Tensor, "C V"],
    targets: Int[Tensor, " C"],
    weights: Float[Tensor, " C"],
    learn: bool,
) -> Float[Tensor, ""]:
    """Sum the losses; where `learn` is set, turn the logits into the loss's gradient in place."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    total = torch.zeros((), device=logits.device, dtype=precise)
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, _LOGITS_IN_CACHE // logits.shape[1])
    for start in range(0, len(logits), rows):
        some, wanted = logits[start : start + rows], targets[start : start + rows, None]
        counts = weights[start : start + rows, None]
        wanted = wanted.where(wanted != IGNORED, 0)
        log_probabilities = torch.log_softmax(some.to(precise), dim=-1)
        total -= (log_probabilities.gather(1, wanted) * counts).sum()
        if learn:
            some.copy_(log_probabilities.exp_())
            some.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=some.dtype))
            some.mul_(counts)
    return total
