"""One step of training: the gradient of a whole batch, then one update."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim import Optimizer

from clearhead.model import GPT
from clearhead.train.loss import IGNORED, summed_loss


@dataclass(frozen=True)
class Gradient:
    """What is known of a batch's gradient, which itself lies in the parameters' `grad`."""

    loss: float
    """Mean loss of the whole batch, in nats a token."""
    norm: float
    """Norm of the whole gradient before it was shortened."""
    finite: bool
    """False if loss or gradient holds NaN or infinity."""


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes its matrix products in `dtype`."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def compute_gradient(
    model: GPT,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    *,
    micro_batch_size: int,
    dtype: torch.dtype,
    max_grad_norm: float,
) -> Gradient:
    """Compute the gradient of the loss averaged over all tokens of the effective batch.

    Args:
        model: The model, in training mode, with no gradient yet.
        inputs: The effective batch, computed `micro_batch_size` rows at a time.
        targets: The token after each of `inputs`; `IGNORED` where nothing is to be learnt.
        micro_batch_size: Rows that go through the model at once.
        dtype: What the matrix products are computed in.
        max_grad_norm: The gradient is shortened to this norm; 0 leaves it.
    """
    n_tokens = (targets != IGNORED).sum().clamp(min=1)
    mean_loss = torch.zeros((), device=inputs.device)
    for start in range(0, len(inputs), micro_batch_size):
        rows = slice(start, start + micro_batch_size)
        with precision(inputs.device, dtype):
            loss = summed_loss(model.hidden(inputs[rows]), model.head.weight, targets[rows])
        loss = loss / n_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or torch.inf)
    finite = bool((mean_loss.isfinite() & norm.isfinite()).item())
    return Gradient(mean_loss.item(), norm.item(), finite)


def apply_gradient(optimizers: Sequence[Optimizer]) -> None:
    """Update the weights with the gradient at hand, and drop it."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
