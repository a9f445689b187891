"""What a run learns from, what it makes small, and what it is measured by."""

from typing import Protocol

import torch
from torch import Tensor

from clearhead.data import Batches, Rows, TokenSpan, windows
from clearhead.model import GPT
from clearhead.tokenizer import Tokenizer
from clearhead.train.config import TrainConfig
from clearhead.train.evaluate import Evaluation, evaluate
from clearhead.train.loss import next_token_loss


class Objective(Protocol):
    """What the training loop needs of a task."""

    train_tokens: int
    """Tokens to train on."""
    held_out_tokens: int
    """Tokens held out."""
    evaluation_cost: float
    """What an evaluation takes, in forward passes of an effective batch."""

    def at(self, step: int) -> Rows:
        """Return the effective batch of a step: a pure function of the step."""

    def loss(self, model: GPT, rows: Rows) -> Tensor:
        """Return the loss of some rows, summed over all that is to be learnt there."""

    def evaluate(self, model: GPT, dtype: torch.dtype) -> Evaluation:
        """Measure the model on what is held out; its mode is the same afterwards."""


class NextToken:
    """Predict each next token of a text.

    Args:
        batches: What to train on.
        held_out: What to evaluate on, up to the `evaluation_tokens` of the config.
        tokenizer: Whose tokens they are.
        config: How to train.
    """

    def __init__(
        self, batches: Batches, held_out: TokenSpan, tokenizer: Tokenizer, config: TrainConfig
    ) -> None:
        self._batches, self._held_out, self._config = batches, held_out, config
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes())
        self.train_tokens, self.held_out_tokens = len(batches.span), len(held_out)
        tokens = min(config.evaluation_tokens, len(held_out))
        self.evaluation_cost = tokens / (config.batch_size * batches.context_length)

    def at(self, step: int) -> Rows:
        """Return the batch of a step."""
        return self._batches.at(step)

    def loss(self, model: GPT, rows: Rows) -> Tensor:
        """Return the summed loss on the next tokens."""
        return next_token_loss(model, rows)

    def evaluate(self, model: GPT, dtype: torch.dtype) -> Evaluation:
        """Measure the loss on the beginning of what is held out."""
        size, length = self._config.batch_size, self._batches.context_length
        limit = max(1, self._config.evaluation_tokens // (size * length))
        batches = windows(self._held_out, length, size, limit)
        return evaluate(model, batches, self._token_bytes, dtype)
