"""The loss on text that the model was not trained on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.data import IGNORED, Rows
from clearhead.model import GPT
from clearhead.train.loss import next_token_loss
from clearhead.train.step import precision


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out text."""

    loss: float
    """Mean loss in nats a token."""
    n: int
    """How many tokens were predicted, or whatever else the loss is a mean over."""
    bits_per_byte: float | None = None
    """The summed loss in bits, divided by the bytes of text that the tokens stand for."""
    accuracy: float | None = None
    """The share of what was predicted right, where that is counted."""
    unit: str = "nats a token"
    """What the loss is told in."""

    def document(self) -> dict[str, float]:
        """Return what was measured, for the record of a run."""
        measured = {"bits_per_byte": self.bits_per_byte, "accuracy": self.accuracy}
        return {"val_loss": self.loss, **{k: v for k, v in measured.items() if v is not None}}

    def __str__(self) -> str:
        parts = [f"{self.loss:.4f} {self.unit}"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} bits a byte")
        if self.accuracy is not None:
            parts.append(f"{self.accuracy:.1%} right")
        return ", ".join(parts)


@torch.no_grad()
def evaluate(
    model: GPT,
    batches: Iterable[Rows],
    token_bytes: Int[Tensor, " V"],
    dtype: torch.dtype,
) -> Evaluation:
    """Measure the loss of `model` on the next token over batches.

    Args:
        model: The model; its mode is the same afterwards.
        batches: What to predict; every target counts once.
        token_bytes: How many bytes of text each token id stands for.
        dtype: What the matrix products are computed in.
    """
    was_training = model.training
    model.eval()
    total, n_tokens, n_bytes = 0.0, 0, 0
    for rows in batches:
        with precision(model.device, dtype):
            total += next_token_loss(model, rows.to(model.device)).item()
        learnt = rows.targets[rows.targets != IGNORED]
        n_tokens += len(learnt)
        n_bytes += int(token_bytes[learnt].sum())
    model.train(was_training)
    n = max(1, n_tokens)
    return Evaluation(total / n, n_tokens, bits_per_byte=total / math.log(2) / max(1, n_bytes))
