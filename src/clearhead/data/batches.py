"""Batches of windows of tokens, their order a pure function of seed and step."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64

from clearhead.data.rows import Rows
from clearhead.data.shards import TokenSpan
from clearhead.errors import ClearheadError


class Batches:
    """Training batches: each epoch goes once through the span, in an order of its own.

    An epoch is a random permutation of windows that follow each other, `context_length` targets
    each, the first of them at a random offset. Both depend on (seed, epoch) alone, so `at` may be
    called for any step, in any order, in any process. What does not fill a window is left out of
    that epoch; another epoch's offset lets other tokens out.

    Args:
        span: The tokens to train on.
        batch_size: Windows in a batch.
        context_length: Tokens of input in a window.
        seed: Decides the order; not negative.

    Raises:
        ClearheadError: The span is shorter than one window, or a number is out of range.
    """

    def __init__(self, span: TokenSpan, batch_size: int, context_length: int, seed: int) -> None:
        if batch_size < 1 or context_length < 1 or seed < 0:
            raise ClearheadError(
                f"batch_size {batch_size} and context_length {context_length} must be at least 1, "
                f"seed {seed} not negative"
            )
        if len(span) < context_length + 1:
            raise ClearheadError(
                f"this part of the corpus has {len(span)} tokens, and one context needs "
                f"{context_length + 1} (context_length {context_length} and one to predict): "
                "give more text, or a smaller context_length"
            )
        self.span = span
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        # As many as fit behind the largest offset, so that all epochs are equally long.
        self.windows_per_epoch = max(1, (len(span) - context_length) // context_length)
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Rows:
        """Return the rows of a step; their targets are the tokens that come next.

        Raises:
            ClearheadError: A token is outside the vocabulary.
        """
        first = step * self.batch_size
        rows = [
            self.span.read(self._window_start(index), self.context_length + 1)
            for index in range(first, first + self.batch_size)
        ]
        both = torch.from_numpy(np.stack(rows))  # [B, T + 1]
        return Rows(both[:, :-1].contiguous(), both[:, 1:].contiguous())

    def _window_start(self, index: int) -> int:
        """Return where the window begins that is number `index` since step 0."""
        epoch, within = divmod(index, self.windows_per_epoch)
        if epoch != self._epoch:
            self._starts = self._epoch_starts(epoch)
            self._epoch = epoch
        return int(self._starts[within])

    def _epoch_starts(self, epoch: int) -> Int64[np.ndarray, " windows"]:
        """Return the starts of an epoch's windows in their order."""
        seeds = np.random.SeedSequence([self.seed, epoch])
        random = np.random.Generator(np.random.Philox(seeds))
        covered = self.windows_per_epoch * self.context_length + 1
        offset = random.integers(min(self.context_length, len(self.span) - covered + 1))
        return random.permutation(self.windows_per_epoch) * self.context_length + offset


def windows(
    span: TokenSpan, context_length: int, batch_size: int, limit: int | None = None
) -> Iterator[Rows]:
    """Go through a span in order, each token but the first exactly once a target.

    Args:
        span: The tokens, say the held-out part.
        context_length: Tokens of input in a window; the last window, a batch of its own, may
            have fewer.
        batch_size: Windows in a batch; the last may have fewer.
        limit: The most batches to go through.

    Yields:
        Batches; their targets are the tokens that come next.

    Raises:
        ClearheadError: The span has fewer than two tokens, or a token outside the vocabulary.
    """
    if len(span) < 2:
        raise ClearheadError(
            f"this part of the corpus has {len(span)} tokens, and predicting needs at least 2: "
            "give more text"
        )
    full, rest = divmod(len(span) - 1, context_length)
    sizes = [min(batch_size, full - first) for first in range(0, full, batch_size)]
    shapes = [(size, context_length) for size in sizes] + ([(1, rest)] if rest else [])
    start = 0
    for rows, length in shapes[:limit]:
        tokens = span.read(start, rows * length + 1)
        inputs, targets = tokens[:-1].reshape(rows, length), tokens[1:].reshape(rows, length)
        yield Rows(torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy()))
        start += rows * length
