"""The loss on text that the model was not trained on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.model import GPT
from clearhead.train.loss import summed_loss
from clearhead.train.step import precision


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out text."""

    loss: float
    """Mean loss in nats a token."""
    bits_per_byte: float
    """The summed loss in bits, divided by the bytes of text that the tokens stand for."""
    n_tokens: int
    """How many tokens were predicted."""


@torch.no_grad()
def evaluate(
    model: GPT,
    batches: Iterable[tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]]],
    token_bytes: Int[Tensor, " V"],
    dtype: torch.dtype,
) -> Evaluation:
    """Measure the loss of `model` over batches of (inputs, targets).

    Args:
        model: The model; its mode is the same afterwards.
        batches: What to predict; every target counts once.
        token_bytes: How many bytes of text each token id stands for.
        dtype: What the matrix products are computed in.
    """
    was_training = model.training
    model.eval()
    total, n_tokens, n_bytes = 0.0, 0, 0
    for inputs, targets in batches:
        inputs = inputs.to(model.device)
        with precision(model.device, dtype):
            hidden = model.hidden(inputs)
            loss = summed_loss(hidden, model.head.weight, targets.to(model.device))
        total += loss.item()
        n_tokens += targets.numel()
        n_bytes += int(token_bytes[targets].sum())
    model.train(was_training)
    return Evaluation(total / n_tokens, total / math.log(2) / max(1, n_bytes), n_tokens)
