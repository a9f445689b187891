"""One step of training: the gradient of a whole batch, then one update."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from clearhead.data import Rows
from clearhead.model import GPT
from clearhead.train.loss import next_token_loss

Loss = Callable[[GPT, Rows], Tensor]
"""Returns the loss of some rows, summed over all that is to be learnt there."""


@dataclass(frozen=True)
class Gradient:
    """What is known of a batch's gradient, which itself lies in the parameters' `grad`."""

    loss: float
    """Mean loss of the whole batch, in nats a token, or whatever the rows count."""
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
    rows: Rows,
    *,
    micro_batch_size: int,
    dtype: torch.dtype,
    max_grad_norm: float,
    loss: Loss = next_token_loss,
) -> Gradient:
    """Compute the gradient of the loss averaged over all that the effective batch has to teach.

    Args:
        model: The model, in training mode, with no gradient yet.
        rows: The effective batch, on the model's device.
        micro_batch_size: Rows that go through the model at once.
        dtype: What the matrix products are computed in.
        max_grad_norm: The gradient is shortened to this norm; 0 leaves it.
        loss: What is to become small.
    """
    total = rows.total() or 1.0
    mean_loss = torch.zeros((), device=rows.inputs.device)
    for start in range(0, len(rows), micro_batch_size):
        with precision(rows.inputs.device, dtype):
            summed = loss(model, rows.part(start, start + micro_batch_size))
        mean = summed / total
        mean.backward()  # type: ignore[no-untyped-call]
        mean_loss += mean.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or torch.inf)
    finite = bool((mean_loss.isfinite() & norm.isfinite()).item())
    return Gradient(mean_loss.item(), norm.item(), finite)


def apply_gradient(optimizers: Sequence[Optimizer]) -> None:
    """Update the weights with the gradient at hand, and drop it."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
