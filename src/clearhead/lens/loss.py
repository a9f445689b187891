"""The loss on the next token, without the logits of all positions at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.model import GPT
from clearhead.model.linear import linear

_CHUNK = 4096  # rows of the unembedding: [1024, 4096] logits stay near the cores


def token_losses(
    model: GPT, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return the loss at each position.

    Args:
        model: Whose unembedding it is.
        hidden: The normalised residual stream.
        targets: The tokens that follow.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden, weight = hidden.to(dtype), model.head.weight
    return _log_sum(hidden, weight) - (hidden * weight[targets].to(dtype)).sum(-1)


def loss_gradient(
    model: GPT, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, "N D"]:
    """Return the derivative of each position's loss by the residual stream that it is read from."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden, weight = hidden.to(dtype), model.head.weight
    log_sum = _log_sum(hidden, weight)
    gradient = -weight[targets].to(dtype)
    for start in range(0, len(weight), _CHUNK):
        rows = weight[start : start + _CHUNK].to(dtype)
        gradient += linear(linear(hidden, rows).sub_(log_sum[:, None]).exp_(), rows.T)
    return gradient


def _log_sum(hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, " N"]:
    """Return log Σ exp of the logits."""
    chunks = [
        linear(hidden, weight[start : start + _CHUNK].to(hidden.dtype)).logsumexp(-1)
        for start in range(0, len(weight), _CHUNK)
    ]
    return torch.stack(chunks).logsumexp(0)
